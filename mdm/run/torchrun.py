"""How a module is started under torchrun on this machine."""

import math
import signal
import sys
from pathlib import Path

from mdm.run.grace import grace_s


def torchrun(module: str, folder: Path, processes: int) -> list[str]:
    """The command that runs a module on a folder in so many processes of this machine.

    They meet at the loopback address: this machine's name need not resolve.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    return [*launcher, f"--nproc-per-node={processes}", "-m", module, str(folder)]


def torchrun_environment(run: Path) -> dict[str, str]:
    """What torchrun is to be told of it: how long it waits, and that a hang-up is none where it is ignored (nohup)."""
    told = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(grace_s(run)))}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        told["PET_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGQUIT"  # its own --signals-to-handle
    return told
