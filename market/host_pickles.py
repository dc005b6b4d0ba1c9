"""The host repositories' old pickled arrays, read without running what a pickle may contain.

A pickle is a program. One of a single array is short, so it is walked first without being run: too many instructions or
calls, a large number or place in the memo, and any instruction that an array does not need are refused. Then a reader
answers the names that NumPy's arrays ask for with small classes of its own; any other name is refused before it is
looked up. NumPy's own rebuilding functions are never called: with a forged state they would take a buffer of numbers
for one of Python objects.

What it costs is bounded by the size of the file: its content is copied a few times at most, as text of up to 4 bytes a
character where it is spelled as text.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from market.errors import DatasetError

LARGEST_PICKLE_BYTES = 8 * 2**30
NUMBER_KINDS = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|M8)")
TIME_UNIT = re.compile(r"h|m|s|ms|us|ns")
MOST_INSTRUCTIONS = 2_000  # an array takes about 50, and has as many places in the memo at most
MOST_CALLS = 20  # an array takes about 5
MOST_DIMENSIONS = 4
LARGEST_NUMBER = 2**64
# None of these looks anything up but through find_class, and none builds what is hashed: a short program can nest
# tuples so that their hash takes years.
PLAIN_NAMES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
    BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT GET BINGET
    LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
PLAIN = frozenset(PLAIN_NAMES.split())
CALLS = frozenset({"REDUCE", "BUILD"})
MEMO_STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
ENCODE = ("_codecs", "encode")


class _Dtype:
    """A dtype of numbers or moments in time; its pickled state may only set the byte order and the unit of time."""

    def __init__(self, descriptor: object, *_: object) -> None:
        if not isinstance(descriptor, str) or not NUMBER_KINDS.fullmatch(descriptor):
            raise pickle.UnpicklingError(f"an array of {_shown(descriptor)}, not of numbers")
        self.name, self.order, self.unit = descriptor.lstrip("<>|="), "=", ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
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

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """State as NumPy writes it: (version, shape, dtype, is_fortran, bytes)."""
        _, shape, dtype, is_fortran, content = state
        self.fill(content, dtype, shape, "F" if is_fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> None:
        """Take the bytes as they are; the shape is checked before anything is done with it."""
        if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
            raise TypeError("not an array of numbers")
        if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS or any(type(size) is not int for size in shape):
            raise TypeError("not a shape")
        if min(shape, default=1) < 0 or math.prod(shape) * dtype.dtype.itemsize != len(content):
            raise ValueError("shape and bytes disagree")
        self.value = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _one_line(error: Exception) -> str:
    """What Python's own unpickler says may quote the file."""
    text = str(error)[:160]
    return text if text.isprintable() else ascii(text)


def _from_buffer(content: object, dtype: object, shape: object, order: object = "C", *_: object) -> _Array:
    array = _Array()
    array.fill(content, dtype, shape, order if isinstance(order, str) else "C")
    return array


def _scalar(dtype: object, content: object = b"") -> object:
    """A NumPy number, which a pickled list may hold."""
    array = _Array()
    array.fill(content, dtype, (), "C")
    return array


def _shown(name: object) -> str:
    """A name from a file as one short line without control characters; anything else by its type alone."""
    return ascii(name[:60]) if isinstance(name, str) else f"a {type(name).__name__}"


class _Only:
    """A function that a pickle may call; it may not set its attributes, as it may those of a plain function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


ALLOWED: dict[tuple[str, str], str | Callable[..., object]] = {
    ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
}
# The homes of NumPy's own functions are private and differ between versions.
for _core in ("numpy.core", "numpy._core"):
    ALLOWED[_core + ".multiarray", "_reconstruct"] = _Array
    ALLOWED[_core + ".multiarray", "scalar"] = _Only(_scalar)
    ALLOWED[_core + ".numeric", "_frombuffer"] = _Only(_from_buffer)


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows arrays of numbers and nothing else."""

    def __init__(self, file: BinaryIO, most_bytes: int = 0) -> None:
        super().__init__(file)
        self._left_bytes = most_bytes  # that text may be turned into

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What stands for the allowed name; anything else is refused."""
        _refuse_foreign(module_name, global_name)
        if (module_name, global_name) == ENCODE:
            return _Only(self._encode)
        return ALLOWED[module_name, global_name]

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        """How pickles below protocol 3 spell bytes; another encoding would be a module to look up."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it asks for the encoding {_shown(encoding)}")
        self._left_bytes -= len(text)
        if self._left_bytes < 0:
            raise pickle.UnpicklingError("it builds more bytes than it holds")
        return text.encode("latin1")


def _refuse_foreign(module_name: str, global_name: str) -> None:
    if (module_name, global_name) != ENCODE and (module_name, global_name) not in ALLOWED:
        raise pickle.UnpicklingError(f"it asks for {_shown(f'{module_name}.{global_name}')}")


def _instructions(content: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, object]]:
    """The program; a strange escape in a text is no reason for a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for code, argument, _ in pickletools.genops(io.BytesIO(content)):
            yield code, argument


def _walk(content: bytes) -> None:
    """Refuse a program that is more than one array, without running it."""
    n_calls = 0
    pushed: list[object] = [None, None]  # last on the stack; None where it is no text, as after a look into the memo
    for n_done, (code, argument) in enumerate(_instructions(content)):
        if n_done >= MOST_INSTRUCTIONS:
            raise pickle.UnpicklingError(f"it has more than {MOST_INSTRUCTIONS} instructions, an array about 50")
        if code.name == "STACK_GLOBAL" and isinstance(pushed[0], str) and isinstance(pushed[1], str):
            _refuse_foreign(pushed[0], pushed[1])
        if code.name not in PLAIN:
            raise pickle.UnpicklingError(f"it has the instruction {code.name}, which no array of numbers needs")
        n_calls += code.name in CALLS
        if n_calls > MOST_CALLS:
            raise pickle.UnpicklingError(f"it makes more than {MOST_CALLS} calls, an array about 5")
        _check_argument(code.name, argument)
        if code.name not in MEMO_STORES:
            pushed = [pushed[1], argument]


def _check_argument(code_name: str, argument: object) -> None:
    """Places in the memo are counted from 0, and the unpickler makes room for all below the largest."""
    if code_name == "GLOBAL":
        _refuse_foreign(*str(argument).split(" ", 1))
    if not isinstance(argument, int):
        return
    if code_name in MEMO_STORES and not 0 <= argument < MOST_INSTRUCTIONS:
        raise pickle.UnpicklingError(f"it uses a place in the memo beyond {MOST_INSTRUCTIONS}")
    if not -LARGEST_NUMBER < argument < LARGEST_NUMBER:
        raise pickle.UnpicklingError("it holds a number of more than 64 bits")


def load_host_array(path: Path | str) -> np.ndarray:
    """A numeric array, or one of datetime64, from a host's pickle such as `price_array`. It is read-only.

    Raises:
        DatasetError: not a pickle, not an array of numbers, or it would run code.
    """
    path = Path(path)
    content = _read_bytes(path)
    try:
        _walk(content)
        found = ArrayUnpickler(io.BytesIO(content), most_bytes=len(content)).load()
    except pickle.UnpicklingError as error:
        raise DatasetError(f"{path}: refused, a pickle may hold NumPy arrays only ({_one_line(error)})") from error
    except (
        EOFError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        MemoryError,
        OverflowError,
        RecursionError,
    ) as error:
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
