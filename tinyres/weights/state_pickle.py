"""Reads the pickle inside a PyTorch file as data: nothing in it is executed.

A pickle is a program for a small stack machine: push a number, build a tuple, import this name, call that. Python's
own unpickler runs it, so a downloaded file can run any command. The machine here knows only the instructions that
``torch.save`` needs for a dict of tensors, or for a whole model. It imports nothing, and knows only the few names in
`_NAMES`, each of which stands for something harmless in this file. Every other name is a `Name`: no more than its text. Of
one, a `Made` can be made, as models and their layers are stored; that is a label and what is written on it. To call it is
refused, and so is every other instruction.

Why not ``pickle.Unpickler`` with a strict ``find_class``? It still hashes tuples nested a million deep (a crash), allocates
a memo as large as the file asks for, and lets the file set attributes of what it built.
"""

from __future__ import annotations

import pickle  # for the names of the instructions; nothing of it is called
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import NoReturn

from tinyres.errors import CheckpointError
from tinyres.files import shown

# A tensor takes about 30 instructions, up to 9 of which make something; this allows 60,000 tensors, and keeps memory under
# 50 MB beside what the file itself holds.
MAX_STEPS, MAX_MADE = 2_000_000, 600_000
MAX_DIMENSIONS = 32
MAX_ARGUMENTS = 8
MAX_INDEX = 2**48  # of an element; in bytes it still fits into 64 bits

NOT_PLAIN = "this file is not a plain state dict; in PyTorch, save model.state_dict() alone"


@dataclass(frozen=True, slots=True)
class StorageType:
    """A name such as ``torch.FloatStorage``; ``kind`` is a key of `common.STORED`."""

    kind: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of ``count`` elements, kept elsewhere in the file under ``key``."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A view into a storage; ``offset`` and ``stride`` count elements. Not yet checked against the storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Name:
    """A class or a function, by its name alone: ``torch.nn.modules.conv.Conv2d``."""

    text: str


@dataclass(eq=False, slots=True)
class Made:
    """An object of a class: a model, a layer. ``state`` holds its attributes, which nothing has looked at yet."""

    kind: str
    state: dict[object, object]


class PickleReader:
    """Reads the pickles in ``data``, one after the other; ``position`` is where the next one starts."""

    def __init__(self, data: bytes, steps: int = MAX_STEPS) -> None:
        self.data = data
        self.steps, self.made = min(steps, MAX_STEPS), 0
        self.position = 0
        self.storages: dict[str, Storage] = {}
        self._first_name: Name | None = None
        self._makes_objects = False
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[int, object] = {}

    def load(self) -> object:
        """The next object: None, bool, int, float, str, tuple, list, dict, `TensorRecord`, `Made`, or a stand-in for a name.

        Raises `CheckpointError` if the pickle is damaged, or asks for anything that neither a state dict nor a model needs.
        """
        self._stack, self._marked, self._memo = [], [], {}
        try:
            for _ in range(self.steps):
                instruction = self._take(1)
                if instruction == pickle.STOP:
                    if self._first_name and not self._makes_objects:  # a state dict names nothing
                        _refuse(self._first_name)
                    return self._stack.pop()
                if instruction in _MAKERS:
                    self._count()
                self._step(instruction)
        except (IndexError, KeyError, UnicodeDecodeError) as error:
            # An empty stack, an unknown memo, a text that is not UTF-8.
            raise CheckpointError(f"damaged pickle at byte {self.position}: {type(error).__name__}") from error
        raise CheckpointError(f"the pickle takes more than {self.steps:,} instructions: {NOT_PLAIN}")

    def _count(self) -> None:
        self.made += 1
        if self.made > MAX_MADE:
            raise CheckpointError(f"the pickle makes more than {MAX_MADE:,} tuples and dicts: {NOT_PLAIN}")

    def _step(self, instruction: bytes) -> None:
        stack = self._stack
        if instruction in _NUMBERS:
            stack.append(self._number(_NUMBERS[instruction]))
        elif instruction in _TEXTS:
            layout, encoding = _TEXTS[instruction]
            stack.append(str(self._take(self._number(layout)), encoding))
        elif instruction in _BYTES:
            self._take(self._number(_BYTES[instruction]))
            stack.append(None)
        elif instruction in _CONSTANTS:
            stack.append(_CONSTANTS[instruction])
        elif instruction in _MEMO_PUT:
            self._memo[self._number(_MEMO_PUT[instruction])] = stack[-1]
        elif instruction in _MEMO_GET:
            stack.append(self._memo[self._number(_MEMO_GET[instruction])])
        elif instruction in _SHORT_TUPLES:
            length = _SHORT_TUPLES[instruction]
            stack.append(tuple([stack.pop() for _ in range(length)][::-1]))
        else:
            self._rarer_step(instruction, stack)

    def _rarer_step(self, instruction: bytes, stack: list[object]) -> None:
        match instruction:
            case pickle.PROTO:
                self._take(1)
            case pickle.FRAME:
                self._take(8)
            case pickle.LONG1:
                stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
            case pickle.MEMOIZE:
                self._memo[len(self._memo)] = stack[-1]
            case pickle.MARK:
                self._marked.append(stack)
                self._stack = []
            case pickle.TUPLE:
                items = self._since_mark()
                self._stack.append(tuple(items))
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.APPEND:
                item = stack.pop()
                _extend(stack[-1], [item])
            case pickle.APPENDS:
                items = self._since_mark()
                _extend(self._stack[-1], items)
            case pickle.EMPTY_SET:
                stack.append(None)
            case pickle.ADDITEMS:
                self._since_mark()
            case pickle.FROZENSET:
                self._since_mark()
                self._stack.append(None)
            case pickle.SETITEM:
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case pickle.SETITEMS:
                items = self._since_mark()
                _set_items(self._stack[-1], items)
            case pickle.GLOBAL:
                stack.append(self._look_up(self._line(), self._line()))
            case pickle.STACK_GLOBAL:
                name, module = stack.pop(), stack.pop()
                stack.append(self._look_up(module, name))
            case pickle.NEWOBJ if isinstance(made := stack[-2], Name):
                arguments, _ = stack.pop(), stack.pop()
                if arguments != ():
                    _refuse(made)
                self._makes_objects = True
                stack.append(Made(made.text, {}))
            case pickle.OBJ:
                _refuse(self._since_mark()[0])
            case pickle.REDUCE:
                arguments, function = stack.pop(), stack.pop()
                if isinstance(function, Name):
                    _refuse(function)
                if not isinstance(function, FunctionType):
                    raise CheckpointError(f"the pickle calls a {type(function).__name__}: refused; {NOT_PLAIN}")
                if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
                    raise CheckpointError("damaged pickle: a call with arguments of no known form")
                stack.append(function(*arguments))
            case pickle.BUILD:
                # PyTorch gives a state dict its `_metadata` (versions of the modules) this way: not needed. Nor is what
                # somebody has written on a tensor.
                state = stack.pop()
                if isinstance(stack[-1], Made):
                    stack[-1].state = state if type(state) is dict else {}
                elif type(stack[-1]) not in (dict, TensorRecord):
                    raise CheckpointError(
                        f"the pickle sets attributes of a {type(stack[-1]).__name__}: refused; {NOT_PLAIN}"
                    )
            case pickle.BINPERSID:
                stack.append(self._storage(stack.pop()))
            case _:
                raise CheckpointError(f"pickle instruction {instruction!r} is refused: {NOT_PLAIN}")

    def _storage(self, persistent_id: object) -> Storage | Name:
        match persistent_id:
            case ("module", Name() as name, *_):  # the old format has the source of a model's class here
                return name
            case ("storage", Name() as name, *_):
                _refuse(name)
            # The old format has a sixth entry, a view of the storage, which PyTorch leaves None today.
            case ("storage", StorageType(kind), str(key), str(), int(count), *view) if view in ([], [None]):
                storage = Storage(kind, key, count)
                if self.storages.setdefault(key, storage) != storage:
                    raise CheckpointError(f"storage {shown(key)!r} is described in two different ways")
                return storage
        raise CheckpointError("an entry that is kept outside the pickle is not a storage of a known form")

    def _look_up(self, module: object, name: object) -> object:
        if not isinstance(module, str) or not isinstance(name, str):
            raise CheckpointError("damaged pickle: a name that is not text")
        text = f"{module}.{name}"
        if text in _NAMES:
            return _NAMES[text]
        self._count()
        found = Name(text)
        if text.startswith("__torch__."):
            _refuse(found)
        self._first_name = self._first_name or found
        return found

    def _take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if not start <= self.position <= len(self.data):
            raise CheckpointError("the file ends in the middle of a pickle")
        return self.data[start : self.position]

    def _number(self, layout: str) -> int:
        number: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return number

    def _line(self) -> str:
        end = self.data.find(b"\n", self.position)  # -1 if there is none, which `_take` refuses
        return str(self._take(end + 1 - self.position), "utf-8").removesuffix("\n")

    def _since_mark(self) -> list[object]:
        items, self._stack = self._stack, self._marked.pop()
        return items


def _extend(target: object, items: list[object]) -> None:
    if isinstance(target, Made):  # a kind of list, beside the weights
        return
    if type(target) is not list:
        raise CheckpointError(f"damaged pickle: it appends to a {type(target).__name__}")
    target.extend(items)


def _set_items(target: object, items: list[object]) -> None:
    if isinstance(target, Made):  # a kind of dict, beside the weights
        return
    if type(target) is not dict or len(items) % 2:
        raise CheckpointError(f"damaged pickle: it sets {len(items)} keys and values of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Texts, and the numbers in an optimizer's state. What has another key is no weight, and is left out: hashing a tuple
        # could take forever, or overrun the stack.
        if type(key) in (str, int):
            target[key] = value


def _refuse(name: object) -> NoReturn:
    text = name.text if isinstance(name, Name) else f"a {type(name).__name__}"
    program = "it is a TorchScript program; " if text.startswith("__torch__.") else ""
    raise CheckpointError(f"asks to run {shown(text)}: refused; {program}{NOT_PLAIN}")


def _mapping(*arguments: object) -> dict[object, object]:
    """OrderedDict() and Counter({...}). The dict that is passed is not copied: a file could ask for that often."""
    match arguments:
        case ():
            return {}
        case (dict(items),):
            return items
    raise CheckpointError(f"damaged pickle: a dict is made of {len(arguments)} arguments")


def _inert(*_: object) -> None:
    """What is beside the weights and of no interest here: a set, bytes, a complex number."""


def _size(*arguments: object) -> object:
    match arguments:
        case (tuple(size),):
            return size
    raise CheckpointError("damaged pickle: torch.Size is not made of a tuple")


def _device(*_: object) -> None:
    """The device of a tensor does not matter here."""


def _tensor(*arguments: object) -> TensorRecord:
    """_rebuild_tensor(storage, offset, size, stride), and _v2, which adds requires_grad and hooks."""
    match arguments:
        case (Storage() as storage, int(offset), tuple(size), tuple(stride), *_):
            few = len(size) == len(stride) <= MAX_DIMENSIONS
            if few and all(type(n) is int and 0 <= n < MAX_INDEX for n in (offset, *size, *stride)):
                return TensorRecord(storage, offset, size, stride)
    raise CheckpointError("a tensor is not described by a storage, an offset, a size and strides")


def _parameter(*arguments: object) -> TensorRecord:
    match arguments:
        case (TensorRecord() as tensor, *_):
            return tensor
    raise CheckpointError("a parameter does not hold a tensor")


_NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
_TEXTS = {
    pickle.BINUNICODE: ("<I", "utf-8"),
    pickle.SHORT_BINUNICODE: ("<B", "utf-8"),
    pickle.BINSTRING: ("<i", "latin-1"),  # a `str` of Python 2
    pickle.SHORT_BINSTRING: ("<B", "latin-1"),
}
_BYTES = {pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES: "<I", pickle.BINBYTES8: "<Q", pickle.BYTEARRAY8: "<Q"}
_CONSTANTS: dict[bytes, object] = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_MEMO_PUT = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
_MEMO_GET = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_SHORT_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_MAKERS = {*_SHORT_TUPLES, pickle.MARK, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.REDUCE, pickle.NEWOBJ, pickle.BINPERSID}

_INERT = ("set", "frozenset", "bytes", "bytearray", "complex")
_DTYPES = [f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)]
_DTYPES += ["bfloat16", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"]
_NAMES: dict[str, StorageType | Callable[..., object] | None] = {
    **{f"builtins.{name}": _inert for name in _INERT},
    **{f"__builtin__.{name}": _inert for name in _INERT},  # as protocol 2 calls it
    **{f"torch.{name}": None for name in _DTYPES},
    "_codecs.encode": _inert,  # bytes, as protocol 2 writes them
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,  # the milestones of a learning rate schedule
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.DoubleStorage": StorageType("F64"),
    "torch.FloatStorage": StorageType("F32"),
    "torch.HalfStorage": StorageType("F16"),
    "torch.BFloat16Storage": StorageType("BF16"),
    "torch.LongStorage": StorageType("I64"),
    "torch.IntStorage": StorageType("I32"),
    "torch.ShortStorage": StorageType("I16"),
    "torch.CharStorage": StorageType("I8"),
    "torch.ByteStorage": StorageType("U8"),
    "torch.BoolStorage": StorageType("BOOL"),
}
