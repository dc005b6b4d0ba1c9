"""The host repositories' old pickled arrays, read without running what a pickle may contain.

A pickle is a program. This reader runs at most `MOST_INSTRUCTIONS` of the few instructions that an array needs, and
refuses every other. The names that NumPy's arrays ask for are answered with small classes of this file; any other name
is refused before it is looked up. NumPy's own rebuilding functions are never called: with a forged state they would
take a buffer of numbers for one of Python objects.

What it costs is bounded by the size of the file: its content is copied a few times at most, as text of up to 4 bytes a
character where it is spelled as text.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from market.errors import DatasetError

LARGEST_PICKLE_BYTES = 8 * 2**30
NUMBER_KINDS = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|M8)")
TIME_UNIT = re.compile(r"h|m|s|ms|us|ns")
MOST_INSTRUCTIONS = 2_000  # an array takes about 50; one byte of a file may ask for an object of 56
MOST_DIMENSIONS = 4
# None of these looks a name up but through find_class, runs code but through REDUCE and BUILD, or hashes what the file
# built: a short program can nest tuples so that their hash takes years.
PLAIN_NAMES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
    BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT GET BINGET
    LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
DAMAGE = (EOFError, AttributeError, LookupError, TypeError, ValueError, struct.error, MemoryError, OverflowError)
DAMAGE += (RecursionError, BufferError)


class _Dtype:
    """A dtype of numbers or moments in time; its pickled state may only set the byte order and the unit of time."""

    def __init__(self, descriptor: object, *_: object) -> None:
        if not isinstance(descriptor, str) or not NUMBER_KINDS.fullmatch(descriptor):
            raise pickle.UnpicklingError(f"an array of {_shown(descriptor)}, not of numbers")
        self.name, self.order, self.unit = descriptor.lstrip("<>|="), "=", ""

    def build(self, state: tuple[Any, ...]) -> None:
        """State as NumPy writes it: (version, byte order, ..., and for a moment in time its unit)."""
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("byte order")
        self.order = str(state[1])
        if self.name == "M8" and len(state) > 8:
            unit, count = state[8][1][:2]
            unit = unit.decode("ascii") if isinstance(unit, bytes) else unit
            if not isinstance(unit, str) or not TIME_UNIT.fullmatch(unit) or count != 1:
                raise ValueError("unit of time")
            self.unit = f"[{unit}]"

    @property
    def dtype(self) -> np.dtype:
        """The real one."""
        return np.dtype(f"{self.order}{self.name}{self.unit}")


class _Array:
    """An array whose shape must agree with the bytes that are there, so that a lie costs no memory."""

    value: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        """What NumPy asks for at first is empty; the state fills it."""

    def build(self, state: tuple[Any, ...]) -> None:
        """State as NumPy writes it: (version, shape, dtype, is_fortran, bytes)."""
        _, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
            raise TypeError("not an array of numbers")
        if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
            raise TypeError("not a shape")
        # Before any arithmetic: a size may be a number of a million digits.
        if not all(type(size) is int and 0 <= size <= len(content) for size in shape):
            raise ValueError("not a size")
        if math.prod(shape) * dtype.dtype.itemsize != len(content):
            raise ValueError("shape and bytes disagree")
        self.value = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


def _from_buffer(content: object, dtype: object, shape: object, order: object = "C", *_: object) -> _Array:
    array = _Array()
    array.build((1, shape, dtype, order == "F", content))
    return array


def _shown(name: object) -> str:
    """A name from a file as one short line without control characters; anything else by its type alone."""
    return ascii(name[:60]) if isinstance(name, str) else f"a {type(name).__name__}"


ALLOWED: dict[str, str | Callable[..., object]] = {
    "numpy.ndarray": "ndarray",  # only ever an argument of _reconstruct
    "numpy.dtype": _Dtype,
}
# The homes of NumPy's own functions are private and differ between versions.
for _core in ("numpy.core", "numpy._core"):
    ALLOWED |= {f"{_core}.multiarray._reconstruct": _Array, f"{_core}.numeric._frombuffer": _from_buffer}


class _Instructions(dict[int, Callable[[Any], None]]):
    """What an unpickler does for each instruction of one file; a foreign one, or one too many, is refused."""

    n_done = 0

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.n_done += 1
        if self.n_done > MOST_INSTRUCTIONS:
            raise pickle.UnpicklingError(f"it has more than {MOST_INSTRUCTIONS} instructions, an array about 50")
        if code not in self:
            raise pickle.UnpicklingError(f"it has the instruction {chr(code)!a}, which no array of numbers needs")
        return super().__getitem__(code)


class ArrayUnpickler(pickle._Unpickler):
    """An unpickler that knows arrays of numbers and nothing else.

    It is Python's unpickler written in Python: its memo is a dict, so a large place in it costs nothing.
    """

    stack: list[Any]
    append: Callable[[object], None]
    read: Callable[[int], bytes]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._left_bytes = len(content)  # that text may be turned into
        codes = {name: getattr(pickle, name)[0] for name in PLAIN_NAMES.split()}
        plain = {code: pickle._Unpickler.dispatch[code] for code in codes.values()}
        own = {name: getattr(type(self), f"_{name.lower()}") for name in ("REDUCE", "BUILD", "BYTEARRAY8")}
        own = {codes[name]: method for name, method in own.items()}
        self.dispatch = _Instructions(plain | own)  # pyright: ignore[reportAttributeAccessIssue]

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What stands for the allowed name; anything else is refused."""
        name = f"{module_name}.{global_name}"
        if name == "_codecs.encode":
            return self._encode
        if name not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {_shown(name)}")
        return ALLOWED[name]

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        """How pickles below protocol 3 spell bytes; another encoding would be a module to look up."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it asks for the encoding {_shown(encoding)}")
        self._left_bytes -= len(text)
        if self._left_bytes < 0:
            raise pickle.UnpicklingError("it builds more bytes than it holds")
        return text.encode("latin1")

    def _reduce(self) -> None:
        """Call what find_class returned: nothing else that a pickle puts on the stack can be called."""
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it makes a call without a tuple of arguments")
        self.stack[-1] = function(*arguments)

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, (_Dtype, _Array)) or not isinstance(state, tuple):
            raise pickle.UnpicklingError(f"it changes {_shown(target)}")
        target.build(state)

    def _bytearray8(self) -> None:
        """Python's own makes room for as many bytes as the file says before it reads them."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))


def load_host_array(path: Path | str) -> np.ndarray:
    """A numeric array, or one of datetime64, from a host's pickle such as `price_array`. It is read-only.

    Raises:
        DatasetError: not a pickle, not an array of numbers, or it would run code.
    """
    path = Path(path)
    content = _read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a strange escape in a text
            found = ArrayUnpickler(content).load()
    except pickle.UnpicklingError as error:
        # What Python's own unpickler says may quote the file.
        text = str(error)[:160]
        shown = text if text.isprintable() else ascii(text)
        raise DatasetError(f"{path}: refused, a pickle may hold NumPy arrays only ({shown})") from error
    except DAMAGE as error:
        raise DatasetError(f"{path}: not a whole pickle of an array ({type(error).__name__})") from error
    value = found.value if isinstance(found, _Array) else None
    if value is None or value.size == 0:
        kind = "an empty array" if isinstance(found, _Array) else f"a {type(found).__name__}"
        raise DatasetError(f"{path}: holds {kind}, expected an array of numbers")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_PICKLE_BYTES:
            raise DatasetError(f"{path}: larger than {LARGEST_PICKLE_BYTES} bytes; not read")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
