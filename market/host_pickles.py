"""Safe reading of the host repositories' pickled arrays, without executing code from the pickles.

A pickle is a program. This reader supports only the few instructions that an array needs and rejects all others. It
executes at most `MOST_INSTRUCTIONS` instructions. Small classes in this file replace the NumPy names in a pickle. Any
other name is rejected before it is looked up. NumPy's own reconstruction functions are never called, because a forged
state could make them interpret numbers as Python objects.

Memory use is bounded by the file size. The content is copied a few times at most, with up to 4 bytes per character if
it is stored as text.
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
MOST_INSTRUCTIONS = 2_000  # an array takes about 50; one byte of a file can create an object of 56 bytes
MOST_DIMENSIONS = 4
# These instructions look up names only through find_class, run code only through REDUCE and BUILD, and never hash what
# the file built: a short program can nest tuples whose hash takes years.
PLAIN_NAMES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
    BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT GET BINGET
    LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
DAMAGE = (EOFError, AttributeError, LookupError, TypeError, ValueError, struct.error, MemoryError, OverflowError)
DAMAGE += (RecursionError, BufferError)


class _Dtype:
    """A numeric or datetime dtype. Its pickled state may set only byte order and time unit."""

    def __init__(self, descriptor: object, *_: object) -> None:
        if not isinstance(descriptor, str) or not NUMBER_KINDS.fullmatch(descriptor):
            raise pickle.UnpicklingError(f"an array of {_shown(descriptor)}, expected numbers")
        self.name, self.order, self.unit = descriptor.lstrip("<>|="), "=", ""

    def build(self, state: tuple[Any, ...]) -> None:
        """Apply NumPy's state: (version, byte order, ..., and for datetime64 the unit)."""
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
        """The NumPy dtype."""
        return np.dtype(f"{self.order}{self.name}{self.unit}")


class _Array:
    """An array whose shape must match its number of bytes, so that a false shape allocates no memory."""

    value: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        """Create an empty array, like NumPy. The state fills it."""

    def build(self, state: tuple[Any, ...]) -> None:
        """Apply NumPy's state: (version, shape, dtype, is_fortran, bytes)."""
        _, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
            raise TypeError("not an array of numbers")
        if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
            raise TypeError("not a shape")
        # Check before any arithmetic: a size may have a million digits.
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
    """Return a string from a file as a short ASCII line, or the type name of any other object."""
    return ascii(name[:60]) if isinstance(name, str) else f"a {type(name).__name__}"


ALLOWED: dict[str, str | Callable[..., object]] = {
    "numpy.ndarray": "ndarray",  # only an argument of _reconstruct
    "numpy.dtype": _Dtype,
}
# NumPy's private modules differ between versions.
for _core in ("numpy.core", "numpy._core"):
    ALLOWED |= {f"{_core}.multiarray._reconstruct": _Array, f"{_core}.numeric._frombuffer": _from_buffer}


class _Instructions(dict[int, Callable[[Any], None]]):
    """Dispatch table of an unpickler for one file. Unknown instructions, and too many of them, raise an error."""

    n_done = 0

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.n_done += 1
        if self.n_done > MOST_INSTRUCTIONS:
            raise pickle.UnpicklingError(f"it has more than {MOST_INSTRUCTIONS} instructions; an array has about 50")
        if code not in self:
            raise pickle.UnpicklingError(f"it has the instruction {chr(code)!a}, which numeric arrays do not use")
        return super().__getitem__(code)


class ArrayUnpickler(pickle._Unpickler):
    """An unpickler that supports only numeric arrays.

    It derives from Python's pure-Python unpickler. Its memo is a dict, so a large index allocates no memory.
    """

    stack: list[Any]
    append: Callable[[object], None]
    read: Callable[[int], bytes]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._left_bytes = len(content)  # limit on the total size of decoded strings, bytes
        codes = {name: getattr(pickle, name)[0] for name in PLAIN_NAMES.split()}
        plain = {code: pickle._Unpickler.dispatch[code] for code in codes.values()}
        own = {name: getattr(type(self), f"_{name.lower()}") for name in ("REDUCE", "BUILD", "BYTEARRAY8")}
        own = {codes[name]: method for name, method in own.items()}
        self.dispatch = _Instructions(plain | own)  # pyright: ignore[reportAttributeAccessIssue]

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the replacement for an allowed name; raise UnpicklingError for any other name."""
        name = f"{module_name}.{global_name}"
        if name == "_codecs.encode":
            return self._encode
        if name not in ALLOWED:
            raise pickle.UnpicklingError(f"it uses {_shown(name)}")
        return ALLOWED[name]

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        """Decode bytes of pickle protocols below 3. Only latin1 is allowed, because other encodings import a module."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it uses the encoding {_shown(encoding)}")
        self._left_bytes -= len(text)
        if self._left_bytes < 0:
            raise pickle.UnpicklingError("it builds more bytes than the file has")
        return text.encode("latin1")

    def _reduce(self) -> None:
        """Call a function that find_class returned. A pickle can put no other callable on the stack."""
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
        """Read a bytearray. Python's version allocates the claimed size before reading."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))


def load_host_array(path: Path | str) -> np.ndarray:
    """Read a numeric or datetime64 array from a host's pickle, such as `price_array`. The result is read-only.

    Raises:
        DatasetError: the file is not a pickle, holds anything but a numeric array, or would execute code.
    """
    path = Path(path)
    content = _read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # invalid escape in a string
            found = ArrayUnpickler(content).load()
    except pickle.UnpicklingError as error:
        # Messages of Python's unpickler may quote the file.
        text = str(error)[:160]
        shown = text if text.isprintable() else ascii(text)
        raise DatasetError(f"{path}: rejected, because only pickled NumPy arrays are read ({shown})") from error
    except DAMAGE as error:
        raise DatasetError(f"{path}: not a complete pickle of an array ({type(error).__name__})") from error
    value = found.value if isinstance(found, _Array) else None
    if value is None or value.size == 0:
        kind = "an empty array" if isinstance(found, _Array) else f"a {type(found).__name__}"
        raise DatasetError(f"{path}: contains {kind}, expected a numeric array")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_PICKLE_BYTES:
            raise DatasetError(f"{path}: larger than the limit of {LARGEST_PICKLE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
