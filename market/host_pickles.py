"""The host repositories' old pickled arrays, read without running what a pickle may contain.

A pickle is a program. This reader allows exactly the functions that rebuild a NumPy array, NumPy scalars and plain
Python containers; any other name in it is refused before it is looked up.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from market.errors import DatasetError

LARGEST_PICKLE_BYTES = 8 * 2**30


def _numeric_dtype(descriptor: str, *flags: bool) -> np.dtype:
    """A dtype that is not made of Python objects."""
    dtype = np.dtype(descriptor, *flags)
    if dtype.hasobject:
        raise pickle.UnpicklingError("an array of Python objects")
    return dtype


# The functions that NumPy itself names when it pickles; their homes are private and differ between versions.
_RECONSTRUCT: Any = np.zeros(1).__reduce_ex__(2)[0]
_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]
_SCALAR: Any = np.float64(0.0).__reduce__()[0]


def _empty_array(*_: object) -> np.ndarray:
    """The empty array that a pickle then fills; a shape asked for here would only cost memory."""
    return _RECONSTRUCT(np.ndarray, (0,), b"b")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _numeric_dtype,
    ("_codecs", "encode"): lambda text, encoding="latin1": text.encode(encoding),
}
for _core in ("numpy.core", "numpy._core"):
    ALLOWED[_core + ".multiarray", "_reconstruct"] = _empty_array
    ALLOWED[_core + ".multiarray", "scalar"] = _SCALAR
    ALLOWED[_core + ".numeric", "_frombuffer"] = _FROM_BUFFER


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows NumPy arrays and nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The allowed function of that name; anything else is refused."""
        if (module_name, global_name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return ALLOWED[module_name, global_name]


def load_host_array(path: Path | str) -> np.ndarray:
    """A numeric array from a host's pickle such as `price_array`.

    Raises:
        DatasetError: not a pickle, not a numeric array, or it would run code.
    """
    path = Path(path)
    content = _read_bytes(path)
    try:
        value = ArrayUnpickler(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise DatasetError(f"{path}: refused, a pickle may hold NumPy arrays only ({error})") from error
    except (EOFError, AttributeError, LookupError, TypeError, ValueError, MemoryError, OverflowError) as error:
        raise DatasetError(f"{path}: not a whole pickle of an array ({type(error).__name__})") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.size == 0:
        raise DatasetError(f"{path}: holds {type(value).__name__}, expected a non-empty array of numbers")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_PICKLE_BYTES:
            raise DatasetError(f"{path}: larger than {LARGEST_PICKLE_BYTES} bytes; not read")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
