"""Files of torch.save: everything in them is read, nothing in them is run."""

import argparse
import pickle
import random
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mdm.released.unpickle import Foreign, read_torch_file


def archive(path: Path, description: bytes, **storages: bytes) -> Path:
    """A zip archive as torch.save lays it out, around a description of our own."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", description)
        for key, content in storages.items():
            file.writestr(f"a/data/{key}", content)
    return path


class Settings:
    """Stands for a class of theirs: any instance with attributes."""

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


def test_tensors_and_containers_come_out_as_they_are(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    saved: dict[str, Any] = {
        "weights": OrderedDict(a=base[3:9].view(2, 3), b=base.view(4, 6).t(), c=nn.Parameter(torch.ones(2))),
        "half": torch.full((3,), 0.5, dtype=torch.bfloat16),
        "empty": torch.empty(0, 4),
        "plain": [1, -70000, 2**40, 0.25, "ü", None, True, False, (), (1,), (1, 2, 3, 4), {"x": []}],
    }
    for protocol in (2, 4):
        torch.save(saved, tmp_path / "file.pth", pickle_protocol=protocol)
        read = read_torch_file(tmp_path / "file.pth")
        assert list(read) == list(saved) and read["plain"] == saved["plain"]
        assert list(read["weights"]) == ["a", "b", "c"]
        assert all(torch.equal(read["weights"][name], tensor) for name, tensor in saved["weights"].items())
        assert torch.equal(read["half"], saved["half"]) and read["half"].dtype == torch.bfloat16
        assert read["empty"].shape == (0, 4)


def test_objects_of_foreign_classes_are_described_and_their_modules_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("models.unet")
    monkeypatch.setattr(Settings, "__module__", "models.unet")
    module.Settings = Settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.unet", module)
    args = argparse.Namespace(unet=Settings(channels=[256, 512]), fp16=1)
    torch.save({"args": args, "loss": np.float64(0.5)}, tmp_path / "file.pth")
    monkeypatch.undo()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)

    read = read_torch_file(tmp_path / "file.pth")
    assert read["args"] == Foreign(
        "argparse.Namespace", (), {"unet": Foreign("models.unet.Settings", (), {"channels": [256, 512]}), "fp16": 1}
    )
    assert read["loss"].name.endswith("core.multiarray.scalar")
    assert "models" not in sys.modules and not (tmp_path / "canary").exists()


def test_members_of_enumerations_are_described_however_they_were_written(tmp_path: Path) -> None:
    by_value = b"csamplers\nThreshold\nK\x03\x85R."
    by_name = b"c__builtin__\ngetattr\ncsamplers\nThreshold\nX\x04\0\0\0CLIP\x86R."  # Python 3.11
    assert read_torch_file(archive(tmp_path / "a.pth", by_value)) == Foreign("samplers.Threshold", (3,))
    assert read_torch_file(archive(tmp_path / "a.pth", by_name)) == Foreign("samplers.Threshold.CLIP", ())


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def touch(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make the file ``canary`` when they are loaded, and what their refusal must name."""
    import os
    import subprocess

    shell, python = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    text = f"X{chr(len(shell))}\0\0\0{shell}".encode()  # BINUNICODE
    return {
        "os.system by REDUCE": (pickle.dumps(Calls(os.system, shell), 2), "posix.system"),
        "eval": (pickle.dumps(Calls(eval, python), 2), "__builtin__.eval"),
        "exec by STACK_GLOBAL": (pickle.dumps(Calls(exec, python), 4), "builtins.exec"),
        "getattr of an import": (pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system"), 2), "__import__"),
        "getattr of a value": (pickle.dumps(Calls(getattr, Calls(getattr, {}, "get"), "x"), 2), "__builtin__.getattr"),
        "getattr of a tensor's maker": (
            b"c__builtin__\ngetattr\nctorch._utils\n_rebuild_tensor_v2\nX\x0b\0\0\0__globals__\x86R.",
            "__builtin__.getattr",
        ),
        "subprocess": (
            pickle.dumps({"state_dict": [Calls(subprocess.call, ["touch", str(canary)])]}, 2),
            "commands.call",
        ),
        "torch.load": (pickle.dumps(Calls(torch.load, "x"), 2), "torch.serialization.load"),
        "INST": (b"(S'" + shell.encode() + b"'\nios\nsystem\n.", "STRING"),
        "INST alone": (b"(" + text + b"ios\nsystem\n.", "os system"),
        "OBJ": (b"(cos\nsystem\n" + text + b"o.", "os.system"),
        "NEWOBJ": (b"cos\nsystem\n" + text + b"\x85\x81.", "os.system"),
        "BUILD": (b"cmodels\nX\n)\x81}" + text + b"cos\nsystem\nsb.", "os.system"),
        "BUILD with __setstate__": (b"cmodels\nX\n}X\x0c\0\0\0__setstate__cos\nsystem\nsb.", "os.system"),
        "dotted name": (b"\x80\x04\x8c\x06models\x8c\x09os.system\x93" + text + b"\x85R.", ""),
        "foreign call": (b"cmodels\nsystem\n" + text + b"\x85R.", ""),
        "attributes of a class": (b"cmodels\nX\n}b.", "sets attributes"),
        "call of a value": (text + text + b"\x85R.", "no class or function"),
        "copyreg extension": (b"\x82\x01.", "EXT1"),
    }


@pytest.mark.parametrize("what", touch(Path("x")))
def test_hostile_pickles_run_nothing(tmp_path: Path, what: str) -> None:
    canary = tmp_path / "canary"
    description, named = touch(canary)[what]
    file = archive(tmp_path / "file.pth", description)
    if named:
        with pytest.raises(ValueError) as error:
            read_torch_file(file)
        assert str(file) in str(error.value) and named in str(error.value)
    else:  # a call of a package that weights may mention: described, not made
        read = read_torch_file(file)
        assert isinstance(read, Foreign) and read.name.startswith("models.")
    assert not canary.exists()


def test_the_hostile_pickles_would_run_elsewhere(tmp_path: Path) -> None:
    for what in ("os.system by REDUCE", "eval", "exec by STACK_GLOBAL", "INST", "INST alone", "OBJ"):
        canary = tmp_path / what.replace(" ", "-")
        pickle.loads(touch(canary)[what][0])  # noqa: S301 - that is the point
        assert canary.exists(), what


def reference(*items: object) -> bytes:
    """A pickle of a persistent id."""
    return pickle.dumps(items, 2)[:-1] + b"Q."


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (reference("storage", "os.system", "0", "cpu", 1), "no storage"),
        (reference("module", 1), "no storage"),
        (b"\x80\x02}Q.", "no storage"),
        (b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x04\0\0\0../xX\x03\0\0\0cpuK\x01tQ.", "'../x' is missing"),
        (b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpuK\x02tQ.", "another size"),
        (b"]]s.", "damaged"),
        (b"}]Ns.", "keys that are no names"),
        (b"K\x01K\x02a.", "no list"),
        (b"h\x07.", "damaged"),
        (b"t.", "damaged"),
        (b"}", "pickle exhausted"),
        (b"\xff.", "opcode"),
        (b"", "pickle exhausted"),
    ],
)
def test_nonsense_is_named(tmp_path: Path, description: bytes, message: str) -> None:
    file = archive(tmp_path / "file.pth", description, k=b"\0\0\0\0")
    with pytest.raises(ValueError) as error:
        read_torch_file(file)
    assert str(file) in str(error.value) and message in str(error.value)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpuK\x02tQ"
    for place, ok in ((b"K\0K\x02\x85K\x01\x85", True), (b"K\x01K\x02\x85K\x01\x85", False)):
        rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89}tR."
        file = archive(tmp_path / "file.pth", rebuild, k=bytes(8))
        if ok:
            assert torch.equal(read_torch_file(file), torch.zeros(2))
        else:
            with pytest.raises(ValueError, match="beyond its storage"):
                read_torch_file(file)


def test_damaged_and_other_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    torch.save({"a": torch.ones(1000)}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"file\.pth: cut short"):
        read_torch_file(file)
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"file\.pth: .*format before 1\.6"):
        read_torch_file(file)
    file.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"file\.pth: no file of torch\.save"):
        read_torch_file(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/data.pkl", bytes(1 << 20))
    with pytest.raises(ValueError, match="compressed"):
        read_torch_file(file)
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a/other", b"")
    with pytest.raises(ValueError, match=r"0 entries named data\.pkl"):
        read_torch_file(file)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning:pickletools")
def test_any_change_of_the_description_is_read_or_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": OrderedDict(a=torch.ones(3), b=torch.zeros(2, 2)), "n": [1, 2]}, tmp_path / "file.pth")
    with zipfile.ZipFile(tmp_path / "file.pth") as file:
        content = {name.split("/", 1)[1]: file.read(name) for name in file.namelist()}
    storages = {name.removeprefix("data/"): data for name, data in content.items() if name.startswith("data/")}
    draw, refused = random.Random(0), 0
    for _ in range(400):
        description = bytearray(content["data.pkl"])
        description[draw.randrange(len(description))] = draw.randrange(256)
        try:
            read_torch_file(archive(tmp_path / "changed.pth", bytes(description), **storages))
        except ValueError:
            refused += 1
    assert refused > 100
