"""How long a job that is asked to stop needs to end well, for whoever asks."""

import math
from pathlib import Path


def grace_s(run: Path) -> float:
    """Seconds between asking a job of that folder to stop and killing it."""
    return 30.0


def torchrun_environment(run: Path) -> dict[str, str]:
    """What torchrun is to be told of it: how long it waits."""
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(grace_s(run)))}
