"""Which stages are done: ``inputs.json`` is written when a stage's folder is begun, ``done.json`` last.

A stage is done when done.json is there and was made from the same inputs. The markers decide, not Prefect's memory.
What is compared is what inputs.json says, read as today's inputs are: a field that came later has its default, and a
file of an earlier shape is translated (``flows/inputs.py``), so that what it marks is neither made nor written again.
Its random ``id`` tells a folder from another one that was made from the same inputs, before or after it.
"""

import itertools
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.records.facts import versions
from mdm.data.embeddings import same_encoder
from mdm.files import write_json
from mdm.structure import digest, from_dict, to_dict
from preprocessing.manifest import read_json

Translate = Callable[[Path, dict[str, Any]], Any]  # a folder, what its inputs.json says -> today's inputs, or None


def once(
    folder: Path,
    inputs: Any,
    work: Callable[[], dict[str, Any]],
    say: Callable[[str], None],
    translate: Translate | None = None,
    whole: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """Do ``work`` unless it is done -> its done.json: {"inputs", "seconds", "finished_ms", …what work returned}.

    ``whole``: whether all that was made is still there; what is not, ``work`` makes again. Library versions are
    recorded, not compared.
    """
    done = read_done(folder, inputs, translate)
    if done is not None and whole():
        return {**done, "reused": True}
    begun = begin(folder, inputs, say, translate)
    started_s = time.time()
    result = work()
    now = time.time()
    done = {"inputs": begun, "seconds": now - started_s, "finished_ms": int(now * 1000), "versions": versions()}
    write_json(folder / "done.json", {**done, **result})
    return {**done, **result, "reused": False}


def begin(folder: Path, inputs: Any, say: Callable[[str], None], translate: Translate | None = None) -> str:
    """Make a stage's folder, or go on with the one that was begun from these inputs -> their digest as it stands there.

    A folder made from other inputs is moved aside, never overwritten.
    """
    started, begun = read_json(folder / "inputs.json"), begun_as(folder, inputs, translate)
    if folder.exists() and started is not None and begun is None:
        name = f"{folder.name}.old-{time.strftime('%Y%m%d-%H%M%S')}"
        names = itertools.chain([name], (f"{name}-{again}" for again in itertools.count(2)))  # twice within a second
        aside = next(path for path in map(folder.with_name, names) if not path.exists())
        folder.rename(aside)
        say(f"{folder.name}: made from other settings or data, moved to {aside.name}")
    folder.mkdir(parents=True, exist_ok=True)
    if begun is None:
        begun = digest(inputs)
        write_json(folder / "inputs.json", {"digest": begun, "id": uuid.uuid4().hex, "inputs": to_dict(inputs)})
    return begun


def read_done(folder: Path, inputs: Any, translate: Translate | None = None) -> dict[str, Any] | None:
    """The marker of a finished stage, if it was made from the wanted inputs."""
    done, begun = read_json(folder / "done.json"), begun_as(folder, inputs, translate)
    return done if done is not None and begun is not None and done.get("inputs") == begun else None


def begun_as(folder: Path, inputs: Any, translate: Translate | None = None) -> str | None:
    """The digest under which a folder was begun, if it was begun from these inputs."""
    started = read_json(folder / "inputs.json")
    if started is None or "inputs" not in started:
        return None
    found = started["inputs"]
    try:
        known = from_dict(type(inputs), found)
    except ValueError:  # of another shape
        known = translate(folder, found) if translate is not None and isinstance(found, dict) else None
    return started.get("digest") if known is not None and _same(to_dict(known), to_dict(inputs)) else None


def _same(known: Any, wanted: Any) -> bool:
    """Equal, but that encoders of the first format are known by less (``mdm/data/embeddings.py:same_encoder``)."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        return known.keys() == wanted.keys() and all(
            _same_encoder(known[key], wanted[key]) if key == "encoder" else _same(known[key], wanted[key])
            for key in wanted
        )
    return known == wanted


def _same_encoder(known: str | None, wanted: str | None) -> bool:
    return known == wanted if known is None or wanted is None else same_encoder(known, wanted)
