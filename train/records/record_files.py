"""The JSON that a study leaves behind, by the codec of `market`: typed records in, typed records out.

Fields that a record does not have are passed over, so an older program reads what a newer one wrote; a field that came
later has a default. In the figures of an account null stands for nan.
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
ACCOUNTS = ("agent", "equal_weight", "best constant band", "equal weight")  # names of `train.records.account.Metrics`
AS_WRITTEN = ("scores",)  # of a deployment: plain values, which stay what they are


def decode(content: Any, type_: type[T], where: str, error: type[UserError] = StudyError, advice: str = RESTORE) -> T:
    """Plain JSON values as a record.

    Args:
        content: as `json.loads` returns it.
        type_: of the record.
        where: the file, or the attribute of a study, for the error's text.
        error: class that is raised.
        advice: what to do about it.

    Raises:
        error: a field is missing or of another type; names it.
    """
    return codec.decode(_with_undefined(content), type_, error, where, advice)


def read_record(path: Path, type_: type[T]) -> T:
    """Read a file of ours.

    Raises:
        StudyError: missing, damaged, or a field is wrong; names the file and the field.
    """
    return decode(read_plain(path), type_, str(path))


def read_plain(path: Path, advice: str = RESTORE) -> dict[str, Any]:
    """The named values of a file of ours, not yet checked; `advice` as of `decode`.

    Raises:
        StudyError: missing or damaged; names the file.
    """
    return codec.read_object(path, StudyError, advice)


def write_json(path: Path, content: Any, overwrites: bool = True) -> None:
    """Write a record, or plain values, whole or not at all; `overwrites` as of `market.files.whole_file`."""
    write_whole(path, codec.encode(content), overwrites)


def plain(content: Any) -> Any:
    """A record, or nested values, as JSON values; nan stays nan."""
    return msgspec.to_builtins(content, enc_hook=codec.plain_value)


def _with_undefined(content: Any) -> Any:
    """The same values; in the figures of an account null, which stands for an undefined one, becomes nan."""
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
    """Plain values with null in the place of numbers that are not finite."""
    if isinstance(content, Mapping):
        return {name: with_null(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [with_null(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def reason_of(error: Exception) -> str:
    """Why a file could not be read, without its name, in one line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.partition("\n")[0]
