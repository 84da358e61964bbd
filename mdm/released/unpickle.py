"""Reader of ``torch.save`` files that runs nothing from them: for weights that come from somewhere else.

A pickle is a program. This is a reader of the few instructions that ``torch.save`` writes, in which there is nothing to
call: tensors, numbers, strings and containers come out as themselves, an object of the authors' code as a ``Foreign``
that only says what it was, and any other name (``os.system``, ``builtins.eval``, …) ends the reading on sight.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 64 << 20  # the description of a thousand tensors takes a third of a megabyte

# Packages of the authors' code, at its release and since; their objects are only described, the packages not imported.
_FOREIGN_PACKAGES = {"language_models", "reader", "config", "models", "diffusion", "samplers", "distributed", "ml_mdm"}
# What the files' plain settings and loss values are made of; only described as well.
_FOREIGN = {
    *("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
    "_codecs.encode",
}
_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
}
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_ORDERED_DICT = "collections.OrderedDict"
_GETATTR = {"__builtin__.getattr", "builtins.getattr"}  # how Python 3.11 writes a member of an enumeration
_ADMITTED = {*_FOREIGN, *_GETATTR, *_DTYPES, _TENSOR, _PARAMETER, _ORDERED_DICT}


@dataclass
class Foreign:
    """An object of somebody else's class, described: nothing of it was imported, made or called."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names. It is never looked up."""

    name: str


def read_torch_file(path: Path) -> Any:
    """What a ``torch.save`` file holds, tensors on the CPU. Raises ValueError naming the file and what is wrong."""
    with path.open("rb") as file:
        start = file.read(4)
    if not zipfile.is_zipfile(path):
        what = "no file of torch.save"
        if start.startswith(b"PK"):
            what = "cut short: the end of the zip archive is missing; download it again"
        elif start.startswith(b"\x80"):
            what = "a bare pickle or torch.save's format before 1.6, which is not read; save it again with torch >= 1.6"
        raise ValueError(f"{path}: {what}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path.stat().st_size)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_archive(archive: zipfile.ZipFile, size_bytes: int) -> Any:
    entries = {info.filename: info for info in archive.infolist()}
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in entries.values())
    if not stored or sum(info.file_size for info in entries.values()) > size_bytes:
        raise ValueError("no file of torch.save: its entries are compressed, or overlap")
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"no file of torch.save: {len(roots)} entries named data.pkl, need one")
    root = roots[0]
    if f"{root}/byteorder" in entries and archive.read(f"{root}/byteorder") != b"little":
        raise ValueError("written on a big-endian machine, which is not read")
    if entries[f"{root}/data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"data.pkl is larger than {MAX_PICKLE_BYTES >> 20} MiB: no weights are described by that much")
    storages: dict[str, Tensor] = {}

    def storage(reference: Any) -> Tensor:
        """('storage', type, key, where it was, count of numbers) -> the numbers [count]."""
        match reference:
            case ("storage", _Name(name=kind), str(key), str(), int(count)) if kind in _DTYPES:
                pass
            case _:
                raise ValueError("data.pkl refers to something that is no storage of numbers")
        if key not in storages:
            entry = entries.get(f"{root}/data/{key}")
            if entry is None or entry.file_size != count * _DTYPES[kind].itemsize:
                raise ValueError(f"storage {key!r} is missing or has another size than data.pkl says")
            content = bytearray(archive.read(entry))
            storages[key] = (
                torch.frombuffer(content, dtype=_DTYPES[kind]) if count else torch.empty(0, dtype=_DTYPES[kind])
            )
        return storages[key]

    return read_pickle(archive.read(f"{root}/data.pkl"), storage)


def read_pickle(data: bytes, storage: Callable[[Any], Tensor]) -> Any:
    """The value that a pickle describes; ``storage`` gives the numbers that a persistent id refers to.

    Raises ValueError naming the first class, function or instruction that ``torch.save`` has no use for.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    try:
        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    (value,) = stack
                    return value
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "SHORT_BINBYTES" | "BINBYTES":
                    stack.append(argument)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(pop_to_mark()))
                case "APPEND":
                    _extend(stack, [stack.pop()])
                case "APPENDS":
                    _extend(stack, pop_to_mark())
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _update(stack, [key, value])
                case "SETITEMS":
                    _update(stack, pop_to_mark())
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_admit(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_admit(module, name))
                case "REDUCE" | "NEWOBJ":
                    arguments, name = stack.pop(), stack.pop()
                    stack.append(_make(name, arguments))
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], Foreign):
                        stack[-1].state = state
                    elif not isinstance(stack[-1], dict):  # attributes of an OrderedDict (_metadata) are not needed
                        raise ValueError("data.pkl sets attributes of something that has none")
                case "BINPERSID":
                    stack.append(storage(stack.pop()))
                case other:
                    what = other if argument is None else f"{other} {argument!r:.80}"
                    raise ValueError(f"data.pkl holds the instruction {what}, which torch.save does not write: refused")
    except (
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ) as error:  # pops of nothing, unknown memo numbers, keys that are lists
        raise ValueError(f"data.pkl is damaged ({type(error).__name__}: {error})") from error
    raise ValueError("data.pkl ends too early")


def _admit(module: Any, name: Any) -> _Name:
    full = f"{module}.{name}"
    if full not in _ADMITTED and not _is_foreign(full):
        raise ValueError(f"data.pkl names {full!r:.80}, which weights have no use for: refused, nothing was run")
    return _Name(full)


def _is_foreign(name: str) -> bool:
    return name.partition(".")[0] in _FOREIGN_PACKAGES


def _make(what: Any, arguments: Any) -> Any:
    """The value of a call of an admitted name: a tensor, a dict, or a mere description."""
    if not isinstance(what, _Name) or not isinstance(arguments, tuple):
        raise ValueError("data.pkl calls something that is no class or function")
    if what.name == _TENSOR:
        return _tensor(*arguments[:4])
    if what.name == _PARAMETER:
        return arguments[0]
    if what.name in _GETATTR:
        match arguments:
            case (_Name(name=owner), str(member)) if _is_foreign(owner):
                return Foreign(f"{owner}.{member}", ())
        raise ValueError(f"data.pkl calls {what.name!r}, which weights have no use for: refused, nothing was run")
    if what.name == _ORDERED_DICT:
        return {}
    return Foreign(what.name, arguments)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """A view of a storage; not a number outside it is ever reached."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, Tensor) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("data.pkl describes a tensor by something else than storage, offset, size and stride")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(storage):
        raise ValueError(f"data.pkl describes a tensor {size} that reaches beyond its storage")
    return storage.as_strided(size, stride, offset)


def _extend(stack: list[Any], items: list[Any]) -> None:
    if type(stack[-1]) is not list:
        raise ValueError("data.pkl appends to something that is no list")
    stack[-1].extend(items)


def _update(stack: list[Any], items: list[Any]) -> None:
    if type(stack[-1]) is not dict or not all(type(key) in (str, int) for key in items[::2]):
        raise ValueError("data.pkl sets items of something that is no dict, or under keys that are no names")
    stack[-1].update(zip(items[::2], items[1::2], strict=True))
