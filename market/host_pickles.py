"""The host repositories' old pickled arrays, read without running what a pickle may contain.

A pickle is a program. This reader answers the names that NumPy's arrays ask for with small classes of its own, plain
Python containers need none, and any other name is refused before it is looked up. NumPy's own rebuilding functions are
never called: with a forged state they would take a buffer of numbers for one of Python objects.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from market.errors import DatasetError

LARGEST_PICKLE_BYTES = 8 * 2**30
NUMBER_KINDS = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|M8)")
TIME_UNIT = re.compile(r"h|m|s|ms|us|ns")


class _Dtype:
    """A dtype of numbers or moments in time; its pickled state may only set the byte order and the unit of time."""

    def __init__(self, descriptor: object, *_: object) -> None:
        if not isinstance(descriptor, str) or not NUMBER_KINDS.fullmatch(descriptor):
            raise pickle.UnpicklingError(f"an array of {descriptor!r}, not of numbers")
        self.name, self.order, self.unit = descriptor.lstrip("<>|="), "=", ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """State as NumPy writes it: (version, byte order, ..., and for a moment in time its unit)."""
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("byte order")
        self.order = str(state[1])
        if self.name == "M8" and len(state) > 8:
            unit, count = state[8][1][:2]
            unit = unit.decode("ascii") if isinstance(unit, bytes) else str(unit)
            if not TIME_UNIT.fullmatch(unit) or count != 1:
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
        """Take the bytes as they are; a string stands for bytes in pickles of Python 2."""
        if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
            raise TypeError("not an array of numbers")
        sizes = tuple(int(size) for size in shape)
        if min(sizes, default=1) < 0 or math.prod(sizes) * dtype.dtype.itemsize != len(content):
            raise ValueError("shape and bytes disagree")
        self.value = np.frombuffer(content, dtype.dtype).reshape(sizes, order="F" if order == "F" else "C")


def _from_buffer(content: object, dtype: object, shape: object, order: object = "C", *_: object) -> _Array:
    array = _Array()
    array.fill(content, dtype, shape, str(order))
    return array


def _scalar(dtype: object, content: object = b"") -> object:
    """A NumPy number, which a pickled list may hold."""
    array = _Array()
    array.fill(content, dtype, (), "C")
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How pickles below protocol 3 spell bytes; another encoding would be a module to look up."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


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
    ("_codecs", "encode"): _Only(_encode),
}
# The homes of NumPy's own functions are private and differ between versions.
for _core in ("numpy.core", "numpy._core"):
    ALLOWED[_core + ".multiarray", "_reconstruct"] = _Array
    ALLOWED[_core + ".multiarray", "scalar"] = _Only(_scalar)
    ALLOWED[_core + ".numeric", "_frombuffer"] = _Only(_from_buffer)


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows arrays of numbers and nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What stands for the allowed name; anything else is refused."""
        if (module_name, global_name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return ALLOWED[module_name, global_name]


def load_host_array(path: Path | str) -> np.ndarray:
    """A numeric array, or one of datetime64, from a host's pickle such as `price_array`. It is read-only.

    Raises:
        DatasetError: not a pickle, not an array of numbers, or it would run code.
    """
    path = Path(path)
    content = _read_bytes(path)
    try:
        found = ArrayUnpickler(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise DatasetError(f"{path}: refused, a pickle may hold NumPy arrays only ({error})") from error
    except (EOFError, AttributeError, LookupError, TypeError, ValueError, MemoryError, OverflowError) as error:
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
