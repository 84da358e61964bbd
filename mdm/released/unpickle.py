"""Reader of ``torch.save`` files that runs nothing from them: for weights that come from somewhere else.

A pickle is a program. This is a reader of the few instructions that ``torch.save`` writes, in which there is nothing to
call: tensors, numbers, strings and containers come out as themselves, an object of the authors' code as a ``Foreign``
that only says what it was, and any other name (``os.system``, ``builtins.eval``, …) ends the reading on sight.

A small file may also ask for more memory or time than any machine has. So whatever it may choose has a limit, and is
checked before it is formatted, multiplied, hashed or read.
"""

import io
import math
import pickletools
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The largest real file in mind: a thousand tensors, their averages and an optimizer's state, 5,500 tensors together.
MAX_PICKLE_BYTES = 16 << 20  # it takes half a megabyte
MAX_DIRECTORY_BYTES = 4 << 20  # the zip archive's list of entries: it takes a third of a megabyte
MAX_INSTRUCTIONS = 1_000_000  # it takes 172,000; each makes an object or two, of some hundred bytes
MAX_INTEGER_KEYS = 10_000  # an optimizer numbers a thousand; all may be chosen to collide, which is quadratic
MAX_INTEGER_BITS = 64  # sizes, steps and seeds
MAX_DIMENSIONS = 8  # a convolution over video has five
MAX_NAME_CHARS = 256  # of a class, with its module
MAX_ERROR_CHARS = 400
# What all tensors together hold, were each copied: at most so many times the file, for weights under two names, or this
# much: a released model's size, for small files whose views repeat a number.
MAX_COPIES = 4
MAX_COPIED_BYTES = 2 << 30

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


@dataclass(frozen=True, eq=False)
class _Storage:
    """The numbers that tensors are views of. It is no tensor, so that no number is reached but through ``_tensor``."""

    numbers: Tensor


class _File(io.BufferedReader):
    """A file of which no more than ``most`` bytes are read at once: ZipFile reads and parses any directory whole."""

    most: float = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise ValueError(f"no file of torch.save: its directory is larger than {MAX_DIRECTORY_BYTES >> 20} MiB")
        return super().read(size)


def read_torch_file(path: Path) -> Any:
    """What a ``torch.save`` file holds, tensors on the CPU. Raises ValueError naming the file and what is wrong."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for somebody to write to it
        raise ValueError(f"{path}: no regular file")
    with _File(io.FileIO(path)) as file:
        try:
            return _read_file(file, status.st_size)
        except MemoryError:  # the machine's fault, not the file's
            raise
        except Exception as error:  # zipfile has a dozen kinds for what is damaged
            what = str(error) if type(error) is ValueError else f"damaged ({type(error).__name__}: {error})"
            line = what.partition("\n")[0]  # torch tells where in its C++, on more lines
            raise ValueError(f"{path}: {line[:MAX_ERROR_CHARS]}") from error


def _read_file(file: _File, size_bytes: int) -> Any:
    start = file.read(4)
    if not zipfile.is_zipfile(file):
        if start.startswith(b"PK"):
            raise ValueError("cut short: the end of the zip archive is missing; download it again")
        if start.startswith(b"\x80"):
            raise ValueError("a bare pickle or torch.save's format before 1.6; save it again with torch >= 1.6")
        raise ValueError("no file of torch.save")
    with zipfile.ZipFile(file) as archive:
        file.most = math.inf  # entries are read by their size, which is checked
        return _read_archive(archive, size_bytes)


def _read_archive(archive: zipfile.ZipFile, size_bytes: int) -> Any:
    entries = {info.filename: info for info in archive.infolist()}
    sizes = [info.file_size for info in archive.infolist()]
    stored = all(
        info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size for info in entries.values()
    )
    if not stored or len(entries) < len(sizes) or sum(sizes) > size_bytes:
        raise ValueError("no file of torch.save: its entries are compressed, overlap, or share a name")
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"no file of torch.save: {len(roots)} entries named data.pkl, need one")
    root = roots[0]
    order = entries.get(f"{root}/byteorder")
    if order and (order.file_size > len("little") or archive.read(order) != b"little"):
        raise ValueError("written on a big-endian machine, which is not read")
    if entries[f"{root}/data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"data.pkl is larger than {MAX_PICKLE_BYTES >> 20} MiB: no weights are described by that much")
    storages: dict[str, _Storage] = {}

    def storage(reference: Any) -> _Storage:
        """('storage', type, key, where it was, count of numbers) -> the numbers [count]."""
        match reference:
            case ("storage", _Name(name=kind), str(key), str(), int(count)) if kind in _DTYPES:
                dtype = _DTYPES[kind]
            case _:
                raise ValueError("data.pkl refers to something that is no storage of numbers")
        if key not in storages:
            entry = entries.get(f"{root}/data/{key}")
            if entry is None or entry.file_size != count * dtype.itemsize:
                raise ValueError(f"storage {key[:80]!r} is missing or has another size than data.pkl says")
            content = bytearray(archive.read(entry))
            storages[key] = _Storage(torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype))
        numbers = storages[key].numbers
        if numbers.dtype != dtype or len(numbers) != count:
            raise ValueError(f"storage {key[:80]!r} has two types or sizes in data.pkl")
        return storages[key]

    return read_pickle(archive.read(f"{root}/data.pkl"), storage, max(MAX_COPIED_BYTES, MAX_COPIES * size_bytes))


def read_pickle(data: bytes, storage: Callable[[Any], _Storage], max_tensor_bytes: int) -> Any:
    """The value that a pickle describes; ``storage`` gives the numbers that a persistent id refers to.

    What is nested may be nested a million deep, and what is shared is one object. Raises ValueError naming the first
    class, function or instruction that ``torch.save`` has no use for.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []
    argument: Any
    integer_keys = tensor_bytes = 0

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def push(value: Any) -> None:
        nonlocal tensor_bytes
        if isinstance(value, Tensor):
            tensor_bytes += value.element_size() * math.prod(max(n, 1) for n in value.shape)
            if tensor_bytes > max_tensor_bytes:
                raise ValueError("data.pkl describes tensors that hold far more numbers than the file")
        stack.append(value)

    try:
        for opcode, argument, _ in islice(pickletools.genops(data), MAX_INSTRUCTIONS):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    if len(stack) != 1:
                        raise ValueError(f"data.pkl is damaged: it ends with {len(stack)} values, need one")
                    return stack[0]
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "LONG1" if argument.bit_length() > MAX_INTEGER_BITS:
                    raise ValueError(f"data.pkl holds an integer of more than {MAX_INTEGER_BITS} bits")
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
                case "SETITEM" | "SETITEMS":
                    items = [stack.pop(-2), stack.pop()] if opcode.name == "SETITEM" else pop_to_mark()
                    integer_keys += sum(type(key) is int for key in items[::2])
                    if integer_keys > MAX_INTEGER_KEYS:
                        raise ValueError(f"data.pkl sets more than {MAX_INTEGER_KEYS:,} items under integers")
                    _update(stack, items)
                case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    if argument not in (None, len(memo)):  # torch.save counts; numbers of any choice could collide
                        raise ValueError(f"data.pkl keeps value {len(memo)} as number {argument}")
                    memo.append(stack[-1])
                case "BINGET" | "LONG_BINGET":
                    push(memo[argument])
                case "GLOBAL":
                    stack.append(_admit(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_admit(module, name))
                case "REDUCE" | "NEWOBJ":
                    arguments, name = stack.pop(), stack.pop()
                    push(_make(name, arguments))
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], Foreign):
                        stack[-1].state = state
                    elif not isinstance(stack[-1], dict):  # attributes of an OrderedDict (_metadata) are not needed
                        raise ValueError("data.pkl sets attributes of something that has none")
                case "BINPERSID":
                    stack.append(storage(stack.pop()))
                case other:
                    what = f"{other} {argument[:80]!r}" if isinstance(argument, str) else other
                    raise ValueError(f"data.pkl holds the instruction {what}, which torch.save does not write: refused")
    except (IndexError, TypeError, OverflowError, RuntimeError) as error:
        # pops of nothing, unknown memo numbers, arguments left out, views that torch refuses
        raise ValueError(f"data.pkl is damaged ({type(error).__name__}: {error})") from error
    raise ValueError(f"data.pkl holds more than {MAX_INSTRUCTIONS:,} instructions: no weights are described by so many")


def _admit(module: Any, name: Any) -> _Name:
    if not (type(module) is type(name) is str) or len(module) + len(name) > MAX_NAME_CHARS:
        raise ValueError("data.pkl names a class or function by something that is no name of one")
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
                return Foreign(_admit(owner, member).name, ())
        raise ValueError(f"data.pkl calls {what.name!r}, which weights have no use for: refused, nothing was run")
    if what.name == _ORDERED_DICT:
        return {}
    return Foreign(what.name, arguments)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """A view of a storage; not a number outside it is ever reached."""
    if not (isinstance(storage, _Storage) and type(size) is type(stride) is tuple and len(size) == len(stride)):
        raise ValueError("data.pkl describes a tensor by something else than storage, offset, size and stride")
    if len(size) > MAX_DIMENSIONS:
        raise ValueError(f"data.pkl describes a tensor of more than {MAX_DIMENSIONS} dimensions")
    if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise ValueError("data.pkl describes a tensor by numbers that are no counts")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(storage.numbers):
        raise ValueError(f"data.pkl describes a tensor {size} that reaches beyond its storage")
    return storage.numbers.as_strided(size, stride, offset)


def _extend(stack: list[Any], items: list[Any]) -> None:
    if type(stack[-1]) is not list:
        raise ValueError("data.pkl appends to something that is no list")
    stack[-1].extend(items)


def _update(stack: list[Any], items: list[Any]) -> None:
    if type(stack[-1]) is not dict or len(items) % 2 or not all(type(key) in (str, int) for key in items[::2]):
        raise ValueError("data.pkl sets items of something that is no dict, or under keys that are no names")
    stack[-1].update(zip(items[::2], items[1::2], strict=True))
