"""Files of torch.save: everything in them is read, nothing in them is run."""

import argparse
import json
import multiprocessing
import os
import pickle
import pickletools
import random
import resource
import signal
import struct
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
from safetensors.torch import load_file
from torch import nn

from mdm.config import MODELS
from mdm.released.convert import convert
from mdm.released.keys import model_from_options
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


def value(content: object) -> bytes:
    """The instructions that make a value, without those that remember it."""
    return pickletools.optimize(pickle.dumps(content, 2))[2:-1]


NAME, FOREIGN = b"ctorch._utils\n_rebuild_tensor_v2\n", b"cmodels\nX\n"


def storage(count: int = 2, kind: str = "FloatStorage") -> bytes:
    return b"(" + value("storage") + f"ctorch\n{kind}\n".encode() + value("k") + value("cpu") + value(count) + b"tQ"


def arguments(offset: object, size: object, stride: object, numbers: bytes = b"") -> bytes:
    return b"(" + (numbers or storage()) + value(offset) + value(size) + value(stride) + b"\x89}t"


def wide(shape: tuple[int, ...]) -> bytes:
    """A tensor with two numbers stored, of any shape."""
    return NAME + arguments(0, shape, (0,) * len(shape)) + b"R."


def doubled(times: int) -> bytes:
    """A tuple of 2**times parts, in 5 bytes for each doubling."""
    return b")" + b"".join(bytes([0x71, i, 0x68, i, 0x86]) for i in range(times))


def number(n: int) -> bytes:
    return b"\x8a\x0a" + n.to_bytes(10, "little")


MEBI = 1 << 20
LONG = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"  # an integer of 255 bytes
KEPT = b"r" + struct.pack("<I", 2**31)  # under a number of the file's choice
HEAVY: dict[str, tuple[Callable[[], bytes], str]] = {
    "module of 2**34 tuples": (lambda: doubled(34) + value("x") + b"\x93.", "no name of one"),
    "name of 2**34 tuples": (lambda: value("models") + doubled(34) + b"\x93.", "no name of one"),
    "reference to 2**34 tuples": (lambda: doubled(34) + b"Q.", "no storage"),
    "key of 2**34 tuples": (lambda: b"}" + doubled(34) + b"Ns.", "keys that are no names"),
    "size of 2**34 tuples": (
        lambda: NAME + b"(" + storage() + b"K\0" + doubled(34) + b")\x89}tR.",
        "something else than storage, offset, size and stride",
    ),
    "long names made often": (
        lambda: value("models") + b"q\0" + value("x" * 60_000) + b"q\1(" + b"h\0h\1\x93" * 100_000 + b"t.",
        "no name of one",
    ),
    "long members named often": (
        lambda: (
            (b"c__builtin__\ngetattr\nq\0(csamplers\nX\n" + value("x" * 60_000) + b"tq\1(")
            + (b"h\0h\1R" * 100_000 + b"t.")
        ),
        "no name of one",
    ),
    "long text without quotes": (lambda: b"S" + b"x" * MEBI + b"\n.", "no string quotes"),
    "product of long integers": (
        lambda: NAME + b"(" + storage() + b"K\0" + LONG + b"q\0(" + b"h\0" * 30_000 + b"t)\x89}tR.",
        "an integer of more than 64 bits",
    ),
    "long offset": (lambda: NAME + arguments(2**70, (1,), (1,)) + b"R.", "an integer of more than 64 bits"),
    "long count": (lambda: storage(2**70) + b".", "an integer of more than 64 bits"),
    "30,000 dimensions": (lambda: wide((2**63,) * 30_000), "more than 8 dimensions"),
    "200 dimensions of one": (lambda: wide((1,) * 200), "more than 8 dimensions"),
    "one number 2**40 times": (lambda: wide((2**40,)), "far more numbers than the file"),
    "a wide tensor of no numbers": (lambda: wide((0, 2**40)), "far more numbers than the file"),
    "a tensor as wide as can be": (lambda: wide((2**63, 2**63)), "damaged"),
    "one storage as 3,000 tensors": (
        lambda: NAME + b"q\0" + arguments(0, (MEBI,), (1,), storage(MEBI)) + b"q\1(" + b"h\0h\1R" * 3000 + b"t.",
        "far more numbers than the file",
    ),
    "one tensor in 3,000 places": (
        lambda: NAME + arguments(0, (MEBI,), (1,), storage(MEBI)) + b"Rq\0(" + b"h\0" * 3000 + b"t.",
        "far more numbers than the file",
    ),
    "one tensor's parameter 3,000 times": (
        lambda: (
            (b"ctorch._utils\n_rebuild_parameter\nq\0" + NAME + arguments(0, (MEBI,), (1,), storage(MEBI)) + b"R")
            + (b"\x85q\1(" + b"h\0h\1R" * 3000 + b"t.")
        ),
        "far more numbers than the file",
    ),
    "a tensor as the size": (
        lambda: NAME + b"(" + storage() + b"K\0" + wide((2**29,))[:-1] + b")\x89}tR.",
        "something else than storage, offset, size and stride",
    ),
    "a tensor of a tensor": (
        lambda: NAME + arguments(0, (1,), (1,), wide((1000,))[:-1]) + b"R.",
        "something else than storage, offset, size and stride",
    ),
    "a text as the size": (lambda: NAME + arguments(0, "1", "1") + b"R.", "something else than storage"),
    "fewer steps than dimensions": (lambda: NAME + arguments(0, (1, 1), (1,)) + b"R.", "something else than storage"),
    "negative offset": (lambda: NAME + arguments(-1, (1,), (1,)) + b"R.", "numbers that are no counts"),
    "offset that is no integer": (lambda: NAME + arguments(0.0, (1,), (1,)) + b"R.", "numbers that are no counts"),
    "size that is no integer": (lambda: NAME + arguments(0, (True,), (1,)) + b"R.", "numbers that are no counts"),
    "storage of two types": (lambda: b"(" + storage() + storage(2, "IntStorage") + b"t.", "two types or sizes"),
    "storage of two sizes": (lambda: b"(" + storage() + storage(10**9) + b"t.", "two types or sizes"),
    "storage of no such size": (lambda: storage(10**18) + b".", "another size"),
    "keys of one hash": (
        lambda: b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(30_000)) + b"u.",
        "an integer of more than 64 bits",
    ),
    "keys of any hash": (
        lambda: b"}(" + b"".join(value(k << 24) + b"N" for k in range(30_000)) + b"u.",
        "more than 10,000 items under integers",
    ),
    "one key again and again": (lambda: b"}" + b"K\1Ns" * 30_000 + b".", "more than 10,000 items under integers"),
    "memo of any hash": (lambda: b"N" + KEPT + b".", "keeps value 0 as number 2147483648"),
    "3 million dicts": (lambda: b"}" * 3 * MEBI + b".", "more than 1,000,000 instructions"),
    "3 million marks": (lambda: b"(" * 3 * MEBI + b".", "more than 1,000,000 instructions"),
    "3 million lists": (lambda: b"](" + b"]" * 3 * MEBI + b"e.", "more than 1,000,000 instructions"),
    "long description": (lambda: value("x" * (16 * MEBI)) + b".", "larger than 16 MiB"),
    "two values": (lambda: b"NN.", "it ends with 2 values"),
    "value without a key": (lambda: b"}(" + value("a") + b"u.", "keys that are no names"),
}


def read_within_bounds(file: Path) -> str:
    """How the reading of a file ends, in a process that is given one gigabyte of memory and half a minute."""
    answer = file.parent / "answer.txt"

    def read() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        try:
            read_torch_file(file)
            end = "read"
        except BaseException as error:
            end = f"{type(error).__name__}: {error}"
        answer.write_text(end)

    answer.write_text("killed: too slow, or crashed")
    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join()
    return answer.read_text()


def assert_refused(end: str, file: Path, message: str) -> None:
    assert end.startswith(f"ValueError: {file}: ") and message in end, end[:1000]
    assert len(end) < len(str(file)) + 500 and end.isprintable()


@pytest.mark.parametrize("what", HEAVY)
def test_what_would_take_more_memory_or_time_than_there_is_is_refused(tmp_path: Path, what: str) -> None:
    describe, message = HEAVY[what]
    description = describe()
    numbers = bytes(4 * MEBI if value(MEBI) in description else 8)  # as many as it says: a mebi or two
    file = archive(tmp_path / "file.pth", description, k=numbers)
    assert_refused(read_within_bounds(file), file, message)


def test_archives_are_bounded_too(tmp_path: Path) -> None:
    file = tmp_path / "file.pth"

    def refused(message: str) -> None:
        assert_refused(read_within_bounds(file), file, message)

    directory = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0) + b"%08d" % i
        for i in range(100_000)
    )
    file.write_bytes(directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(directory), 0, 0))
    refused("its directory is larger than 4 MiB")

    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a/data.pkl", b"N.")
        packed.writestr("a/" + "x" * 60_000, b"")
        packed.filelist[1].filename = "a/data.pkl"
    refused("share a name")

    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a/data.pkl", b"N.")
        packed.writestr("a/rest", bytes(MEBI))
        packed.filelist[0].compress_size = MEBI  # what is read, of which two bytes are given
    refused("overlap")

    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a/data.pkl", b"N.")
        packed.writestr("a/byteorder", b"little" * MEBI)
    refused("big-endian")

    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a/data.pkl", b"N.")
        packed.filelist[0].filename = packed.filelist[0].orig_filename = "x" * 60_000 + "/data.pkl"
    refused("damaged (BadZipFile: File name in directory")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    for name in ("pipe.pth", "folder.pth"):
        assert_refused(read_within_bounds(tmp_path / name), tmp_path / name, "no regular file")
    (tmp_path / "empty.pth").touch()
    assert_refused(read_within_bounds(tmp_path / "empty.pth"), tmp_path / "empty.pth", "no file of torch.save")
    (tmp_path / "link.pth").symlink_to(archive(tmp_path / "file.pth", b"N."))
    assert read_torch_file(tmp_path / "link.pth") is None


def test_deep_nesting_is_read_and_let_go(tmp_path: Path) -> None:
    deep = 200_000
    for description in (
        b")" + b"\x85" * deep,
        b"]" * deep + b"a" * (deep - 1),
        b"}" + b"X\0\0\0\0}" * deep + b"s" * deep,
        FOREIGN + b"q\0)q\1R" + b"h\0h\1R" * deep + b"b" * deep,
    ):
        assert read_within_bounds(archive(tmp_path / "file.pth", description + b".")) == "read"


def test_a_large_training_checkpoint_is_within_the_bounds(tmp_path: Path) -> None:
    flat = torch.arange(8800.0)
    names = [f"blocks.{i}.weight" for i in range(1100)]
    weights = {name: flat[8 * i : 8 * i + 8].view(2, 4) for i, name in enumerate(names)}
    state = {i: {"step": torch.tensor(9.0), "exp_avg": flat[:8] + i, "exp_avg_sq": flat[:8]} for i in range(1100)}
    groups = [{"lr": 1e-4, "betas": (0.9, 0.99), "params": list(range(1100))}]
    saved = {
        "state_dict": weights,
        "ema": {name: tensor + 1 for name, tensor in weights.items()},
        "optimizer": {"state": state, "param_groups": groups},
        "args": argparse.Namespace(seed=2**64 - 1, video=torch.zeros(()).expand(1, 2, 3, 4, 5)),
        "losses": [float(i) for i in range(100_000)],
    }
    for protocol in (2, 4):
        torch.save(saved, tmp_path / "file.pth", pickle_protocol=protocol)
        read = read_torch_file(tmp_path / "file.pth")
        assert all(torch.equal(read["state_dict"][name], tensor) for name, tensor in weights.items())
        assert torch.equal(read["optimizer"]["state"][1099]["exp_avg"], flat[:8] + 1099)
        assert read["optimizer"]["param_groups"] == groups and read["losses"] == saved["losses"]
        assert read["args"].state["seed"] == 2**64 - 1 and read["args"].state["video"].shape == (1, 2, 3, 4, 5)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning:pickletools")
def test_any_change_of_the_file_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    torch.save({"state_dict": OrderedDict(a=torch.ones(3), b=torch.zeros(2, 2)), "n": [1, 2]}, file)
    whole, draw, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(2000):
        changed = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(whole) - draw.choice([1, len(whole) - 600]))  # half of them where the names are
            at = len(changed) - 1 - at if draw.random() < 0.5 else at
            match draw.randrange(3):
                case 0:
                    changed[at] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
                case 1:
                    del changed[at : at + draw.randrange(1, 9)]
                case _:
                    changed[at:at] = draw.randbytes(draw.randrange(1, 9))
        file.write_bytes(changed)
        try:
            read_torch_file(file)
        except ValueError as error:
            refused += 1
            assert_refused(f"ValueError: {error}", file, "")
    assert 1000 < refused < 2000


def test_names_that_no_parameter_has_are_refused_by_convert(tmp_path: Path) -> None:
    one = torch.ones(1)
    for names, message in (
        (["up_blocks.99.attn.0.norm.weight"], "keys do not fit the model"),
        (["inner_unet." * 5 + "down_blocks.0.attn.0.norm.weight"], "keys do not fit the model"),
        (["up_blocks." + "9" * 5000 + ".attn.0.norm.weight"], "is no parameter's name"),
        (["x" * 100_000], "is no parameter's name"),
        ([f"{i}" for i in range(10_001)], "holds 10001 parameters"),
    ):
        file = tmp_path / "file.pth"
        torch.save({"state_dict": dict.fromkeys(names, one)}, file)
        with pytest.raises(ValueError) as error:
            convert(file, tmp_path / "out", "64x64")
        assert str(error.value).startswith(str(file)) and message in str(error.value)
        assert "\n" not in str(error.value) and len(str(error.value)) < 8000  # twenty keys at most are named


def test_parameters_that_share_numbers_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).parents[2] / "golden"
    spec = json.loads((golden / "nested16_64.json").read_text())
    monkeypatch.setitem(MODELS, "256x256", model_from_options(spec["config"], spec["resolutions"], spec["text_dim"]))
    tensors = load_file(golden / "nested16_64.safetensors")
    weights = {key.removeprefix("weights/"): t.float() for key, t in tensors.items() if key.startswith("weights/")}
    numbers = torch.rand(max(tensor.numel() for tensor in weights.values()))
    tied = {key: numbers[: tensor.numel()].view(tensor.shape) for key, tensor in weights.items()}
    torch.save({"state_dict": tied}, tmp_path / "file.pth")
    convert(tmp_path / "file.pth", tmp_path / "out")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor.flatten(), numbers[: tensor.numel()]) for tensor in converted.values())
