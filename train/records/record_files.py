"""JSON files of a study as typed records, using the codec of `market`.

Unknown fields are ignored, so that older programs can read newer files. Fields that were added later have defaults. In
the metrics of an account, null stands for nan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from market import codec
from market.errors import UserError
from market.files import write_whole
from train.records.errors import StudyError

T = TypeVar("T")
RESTORE = "restore the study's results"
ACCOUNTS = (
    "agent",
    "equal_weight",
    "best constant band",
    "equal weight",
)  # fields of type `Metrics`
AS_WRITTEN = ("scores",)  # field of a deployment whose plain values are not converted


def decode(content: Any, type_: type[T], where: str, error: type[UserError] = StudyError, advice: str = RESTORE) -> T:
    """Convert plain JSON values to a record.

    Args:
        content: values as returned by `json.loads`.
        type_: type of the record.
        where: file or attribute, for the error message.
        error: class of the error.
        advice: what to do about the error.

    Raises:
        error: a field is missing or has the wrong type. The message names the field.
    """
    return codec.decode(_with_undefined(content), type_, error, where, advice)


def read_record(path: Path, type_: type[T]) -> T:
    """Read a record from a file.

    Raises:
        StudyError: the file is missing or damaged, or a field is wrong. The message names the file and the field.
    """
    return decode(read_plain(path), type_, str(path))


def read_plain(path: Path, advice: str = RESTORE) -> dict[str, Any]:
    """Return the named values of a file without checking them. For `advice` see `decode`.

    Raises:
        StudyError: the file is missing or damaged. The message names the file.
    """
    return codec.read_object(path, StudyError, advice)


def write_json(path: Path, content: Any, overwrites: bool = True) -> None:
    """Write a record or plain values atomically. For `overwrites` see `market.files.whole_file`."""
    write_whole(path, codec.encode(content), overwrites)


def plain(content: Any) -> Any:
    """Convert a record or nested values to JSON values. nan stays nan."""
    return msgspec.to_builtins(content, enc_hook=codec.plain_value)


def _with_undefined(content: Any) -> Any:
    """Replace null with nan in the metrics of an account."""
    if isinstance(content, list):
        return [_with_undefined(value) for value in content]
    if not isinstance(content, dict):
        return content
    return {name: _named(name, value) for name, value in content.items()}


def _named(name: str, value: Any) -> Any:
    if name in ACCOUNTS and isinstance(value, dict):
        return {figure: math.nan if known is None else known for figure, known in value.items()}
    return value if name in AS_WRITTEN else _with_undefined(value)


def with_null(content: Any) -> Any:
    """Replace numbers that are not finite with null."""
    if isinstance(content, Mapping):
        return {name: with_null(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [with_null(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def reason_of(error: Exception) -> str:
    """Return the reason why a file cannot be read, as one line without the file name."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.partition("\n")[0]
