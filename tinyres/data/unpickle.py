"""Reads the pickles in which CIFAR is published, as data: nothing in them is executed.

A pickle is a program for a small stack machine, and ``pickle.load`` runs whatever program it is given: it imports and
calls what the file names, and a file can make its memo take all memory. A batch of CIFAR needs about thirty
instructions, which push numbers, strings, lists and dictionaries, and three names, which say "here is an array of
bytes". The machine here knows those and refuses everything else. It imports and calls nothing, and its memory is bounded:
twice the size of the file, and some 40 MB for MAX_STEPS small objects.
"""

import os
import pickle  # for the names of the instructions; nothing of it is called
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.errors import DataError
from tinyres.files import open_file

MAX_BYTES = 1 << 28  # 256 MiB; the largest published file, train of CIFAR-100, has 155 MB
SMALL = 1 << 20  # bytes beside the images
MAX_STEPS = 1 << 19  # instructions; the same file has under 400,000

_NUMBERS = {pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BININT: "<i"}
_STRINGS = {  # layout of the length, and encoding; what stays bytes is pixels
    pickle.SHORT_BINSTRING: ("<B", "latin-1"),  # a ``str`` of Python 2
    pickle.BINSTRING: ("<i", None),  # the same, of 256 bytes or more
    pickle.SHORT_BINUNICODE: ("<B", "utf-8"),
    pickle.BINUNICODE: ("<I", "utf-8"),
    pickle.SHORT_BINBYTES: ("<B", None),
    pickle.BINBYTES: ("<I", None),
}
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_MEMO_PUT = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
_MEMO_GET = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_SHORT_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


@dataclass(frozen=True)
class _Name:
    """A name in the file that is admitted. It stands for nothing but itself."""

    text: str


_RECONSTRUCT, _NDARRAY, _DTYPE = _Name("_reconstruct"), _Name("ndarray"), _Name("dtype")
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 1, as published
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 2
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
}


class _Uint8:
    """The only dtype that is admitted."""


class _Array:
    """An array: ``_reconstruct`` makes an empty one, and its state fills it."""

    value: np.ndarray | None = None


def load_batch(source: str | Path | bytes, images: int | None = None) -> dict[str, Any]:
    """The dictionary in a batch or meta file of CIFAR, from its path or its bytes.

    Strings are ``str``, arrays are uint8 and read-only. Raises `DataError`, which names what was refused, for a file that
    is missing, over 256 MiB or over 4 KiB for each of its ``images``, cut short, or that holds anything that the published
    files do not.
    """
    if isinstance(source, bytes):
        return _Machine(source, "these bytes").run()
    path = Path(source)
    try:
        with open_file(path) as file:
            limit = MAX_BYTES if images is None else min(MAX_BYTES, SMALL + images * 4096)
            if (size := os.fstat(file.fileno()).st_size) > limit:
                raise DataError(f"{path} has {size:,} bytes; no such file of CIFAR has over {limit:,}")
            return _Machine(file.read(), str(path)).run()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


class _Machine:
    """The stack machine."""

    def __init__(self, data: bytes, source: str) -> None:
        self.data, self.source, self.position = data, source, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # the height of the stack at each open MARK
        self.memo: dict[int, Any] = {}

    def run(self) -> dict[str, Any]:
        try:
            for _ in range(MAX_STEPS):
                instruction = self.take(1)
                if instruction == pickle.STOP:
                    return self.result(self.stack.pop())
                self.step(instruction)
        except DataError:
            raise
        except (LookupError, TypeError, ValueError) as error:  # a pop from an empty stack, a text that is not UTF-8...
            raise self.refusal(f"damaged pickle ({type(error).__name__})") from error
        raise self.refusal(f"over {MAX_STEPS:,} instructions")

    def refusal(self, what: str) -> DataError:
        return DataError(f"{self.source}, byte {self.position}: {what}; this is not CIFAR as it is published")

    def step(self, instruction: bytes) -> None:
        stack = self.stack
        if instruction in _NUMBERS:
            stack.append(self.number(_NUMBERS[instruction]))
        elif instruction in _STRINGS:
            layout, encoding = _STRINGS[instruction]
            text = self.take(self.number(layout))
            stack.append(text.decode(encoding) if encoding else text)
        elif instruction in _CONSTANTS:
            stack.append(_CONSTANTS[instruction])
        elif instruction in _MEMO_PUT:
            self.memo[self.number(_MEMO_PUT[instruction])] = stack[-1]
        elif instruction in _MEMO_GET:
            stack.append(self.memo[self.number(_MEMO_GET[instruction])])
        elif instruction in _SHORT_TUPLES:
            stack.append(tuple([stack.pop() for _ in range(_SHORT_TUPLES[instruction])][::-1]))
        else:
            self.rarer_step(instruction, stack)

    def rarer_step(self, instruction: bytes, stack: list[Any]) -> None:
        match instruction:
            case pickle.PROTO:
                self.take(1)
            case pickle.FRAME:
                self.take(8)
            case pickle.MEMOIZE:
                self.memo[len(self.memo)] = stack[-1]
            case pickle.MARK:
                self.marks.append(len(stack))
            case pickle.TUPLE:
                stack.append(tuple(self.since_mark()))
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.APPEND:
                self.extend([stack.pop()])
            case pickle.APPENDS:
                self.extend(self.since_mark())
            case pickle.SETITEM:
                value, key = stack.pop(), stack.pop()
                self.set_items([key, value])
            case pickle.SETITEMS:
                self.set_items(self.since_mark())
            case pickle.GLOBAL:
                stack.append(self.look_up(self.line(), self.line()))
            case pickle.STACK_GLOBAL:
                name, module = stack.pop(), stack.pop()
                stack.append(self.look_up(module, name))
            case pickle.REDUCE:
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case pickle.BUILD:
                state = stack.pop()
                self.set_state(stack[-1], state)
            case _:
                raise self.refusal(f"the pickle instruction {_spelled(instruction)} is not admitted")

    # What is read

    def take(self, count: int) -> bytes:
        start, end = self.position, self.position + count
        if not start <= end <= len(self.data):
            raise self.refusal(f"damaged pickle: {count:,} bytes are due, {len(self.data) - start:,} are left")
        self.position = end
        return self.data[start:end]

    def number(self, layout: str) -> int:
        number: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return number

    def line(self) -> str:
        return self.take(self.data.index(b"\n", self.position) + 1 - self.position)[:-1].decode("ascii")

    # What is built

    def since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise self.refusal(f"damaged pickle: it appends to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or any(type(key) is not str for key in items[::2]):
            raise self.refusal("damaged pickle: expected a dict with strings for keys")
        target.update(zip(items[::2], items[1::2], strict=True))

    def look_up(self, module: object, name: object) -> _Name:
        if isinstance(module, str) and isinstance(name, str):
            if (module, name) in _NAMES:
                return _NAMES[module, name]
            raise self.refusal(f"it asks for {f'{module}.{name}'[:100]!r}, which is not admitted and was not looked up")
        raise self.refusal("damaged pickle: a name that is not text")

    def call(self, function: object, arguments: object) -> _Array | _Uint8:
        if function is _RECONSTRUCT:
            return _Array()
        if function is not _DTYPE:
            shown = function.text if isinstance(function, _Name) else f"a {type(function).__name__}"
            raise self.refusal(f"it calls {shown}, which is not admitted")
        if type(arguments) is tuple and arguments[:1] in (("u1",), ("|u1",)):
            return _Uint8()
        raise self.refusal("a dtype that is not uint8 is not admitted")

    def set_state(self, target: object, state: Any) -> None:
        if isinstance(target, _Uint8):
            return  # byte order and padding: single bytes have none
        if not isinstance(target, _Array):
            raise self.refusal(f"it sets the state of a {type(target).__name__}, which is not admitted")
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # under 256 bytes, from Python 2
            data = data.encode("latin-1")
        rows, columns = shape
        plain = isinstance(dtype, _Uint8) and type(data) is bytes
        if not plain or rows < 0 or columns < 0 or rows * columns != len(data):  # a shape alone takes no memory
            raise self.refusal("an array whose bytes do not fill two dimensions with uint8 is not admitted")
        target.value = np.frombuffer(data, np.uint8).reshape(rows, columns, order="F" if fortran else "C")

    def result(self, value: object) -> dict[str, Any]:
        if type(value) is not dict:
            raise self.refusal(f"it holds a {type(value).__name__}, expected a dict")
        return {key: item.value if isinstance(item, _Array) else item for key, item in value.items()}


def _spelled(instruction: bytes) -> str:
    return next((name for name in pickle.__all__ if getattr(pickle, name) == instruction), repr(instruction))
