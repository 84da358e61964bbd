"""Which stages are done: ``inputs.json`` is written when a stage starts, ``done.json`` last.

A stage is done when done.json is there and was made from the same inputs. The markers decide, not Prefect's memory.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdm.files import write_json
from mdm.structure import digest, to_dict


def once(folder: Path, inputs: Any, work: Callable[[], dict[str, Any]], say: Callable[[str], None]) -> dict[str, Any]:
    """Do ``work`` unless it is done -> its done.json: {"inputs", "seconds", "finished_ms", …what work returned}.

    A folder made from other inputs is moved aside, never overwritten.
    """
    wanted = digest(inputs)
    done = read_done(folder, wanted)
    if done is not None:
        return {**done, "reused": True}
    started = _read(folder / "inputs.json")
    if folder.exists() and started is not None and started.get("digest") != wanted:
        aside = folder.with_name(f"{folder.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(aside)
        say(f"{folder.name}: made from other settings or data, moved to {aside.name}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "inputs.json", {"digest": wanted, "inputs": to_dict(inputs)})
    begun = time.time()
    result = work()
    done = {"inputs": wanted, "seconds": time.time() - begun, "finished_ms": int(time.time() * 1000), **result}
    write_json(folder / "done.json", done)
    return {**done, "reused": False}


def read_done(folder: Path, wanted: str) -> dict[str, Any] | None:
    """The marker of a finished stage, if it was made from the wanted inputs."""
    done = _read(folder / "done.json")
    return done if done is not None and done.get("inputs") == wanted else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
