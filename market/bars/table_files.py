"""Bars from untrusted Parquet and CSV files: only the required columns, within size limits, with one-line errors.

A small file may decode to more data than fits in memory. So the claimed sizes of a Parquet file are checked before it
is read, and a CSV file is measured while it is decompressed.

Parquet files of `write_parquet` have a checksum per page and one of all values. So a damaged bit cannot change a bar or
remove the mark of synthetic bars. A CSV file has no checksum: a changed digit is a different price.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pandas.api.types import is_numeric_dtype
from pandas.util import hash_pandas_object

from market.errors import BarsError

MOST_ROWS = 100_000_000  # ten years of one-minute bars of 18 coins are 95 million
MOST_TEXT_BYTES = 16 * 2**30  # of a decompressed CSV file: MOST_ROWS rows of 160 characters
# Files of bars rarely compress to less than a tenth. Small tables of a coin that never traded may.
MOST_TIMES_PACKED = 50
SMALL_TABLE_BYTES, SMALL_TEXT_BYTES = 256 * 2**20, 32 * 2**20
LONGEST_HEADER_BYTES = 2**16
MOST_TITLE_LINES = 20  # non-blank lines up to the header
SEPARATORS = (",", ";", "\t", "|", " ")  # a space is detected and rejected
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # starts with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NOT_NUMBERS = ("timestamp", "symbol", "synthetic")
DECIMAL_COMMA = r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?"
THOUSANDS = r"[+-]?[1-9]\d{0,2},\d{3}"
TOO_MANY_FIELDS = "use decimal points, or quote fields that contain a separator"
LONGEST_TEXT_BYTES = 100  # of a symbol or time in a Parquet file, whose dictionary repeats it at no cost
DIGEST = b"bars_sha256"

# Known errors of the decoders on damaged files: pyarrow raises its own errors and OSError; pandas ValueError (Unicode,
# JSON, ParserError), LookupError (columns, time zones) and TypeError; gzip EOFError and zlib.error.
DECODER_ERRORS = (
    pa.ArrowException,
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    NotImplementedError,
    RecursionError,
    MemoryError,
)


@contextmanager
def _decoding(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except BarsError:
        raise
    except DECODER_ERRORS as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        shown = reason if reason.isprintable() else ascii(reason)
        raise BarsError(f"{path}: not a readable {kind} file ({shown}); download it again") from error


def check_names(names: Sequence[object], wanted: Sequence[str], where: str) -> None:
    """Raise BarsError if two required columns have names that differ only in case and spaces."""
    tidy = [str(name).strip().lower() for name in names]
    for name in wanted:
        if tidy.count(name) > 1:
            raise BarsError(f"{where}: has {tidy.count(name)} columns named {name}; keep one of them")


# ------------------------------------------------------------------------------------------------------------ parquet


def read_parquet(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    """Read the columns in `wanted` (ignoring case) of a flat Parquet file as a DataFrame.

    Raises:
        BarsError: the file is damaged, too large, or has unsupported types.
    """
    with _decoding(path, "Parquet"), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        names = [name for name in schema.names if name.strip().lower() in wanted]
        check_names(names, wanted, str(path))
        for name in names:
            _check_type(path, name, schema.field(name).type)
        _check_sizes(path, file.metadata, len(names))
        text = [name for name in names if _is_text(schema.field(name).type)]
    with _decoding(path, "Parquet"), _open(path, text) as file:
        table = file.read(columns=names)
        _check_texts(path, table)
        frame = table.to_pandas(ignore_metadata=True)
        notes = file.metadata.metadata or {}
        is_whole = len(frame) == file.metadata.num_rows and notes.get(DIGEST) in (None, _digest(frame))
    if not is_whole:
        raise BarsError(f"{path}: the values do not match their checksum; download it again")
    return frame


def _open(path: Path, text: Sequence[str]) -> pq.ParquetFile:
    """Open a Parquet file with dictionary-encoded text, so that a repeated symbol is stored once."""
    return pq.ParquetFile(path, read_dictionary=list(text), page_checksum_verification=True)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_type(path: Path, name: str, kind: pa.DataType) -> None:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    is_time = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if not (is_number or is_time or _is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise BarsError(f"{path}: column {name!r} has type {str(kind)[:60]!r}, expected numbers, text or times")


def _check_sizes(path: Path, metadata: pq.FileMetaData, n_columns: int) -> None:
    n_rows = metadata.num_rows
    if not 0 <= n_rows <= MOST_ROWS:
        raise BarsError(f"{path}: has {n_rows} rows, but the limit is {MOST_ROWS}; split it by time")
    # Column sizes are not read, because pyarrow aborts the process on a damaged file instead of raising.
    unpacked = sum(max(metadata.row_group(i).total_byte_size, 0) for i in range(metadata.num_row_groups))
    n_bytes = max(unpacked, 8 * n_columns * n_rows)
    file_bytes = path.stat().st_size
    if n_bytes > max(SMALL_TABLE_BYTES, MOST_TIMES_PACKED * file_bytes):
        raise BarsError(_too_packed(path, n_bytes, file_bytes, SMALL_TABLE_BYTES))


def _too_packed(path: Path, n_bytes: int, file_bytes: int, small: int) -> str:
    return (
        f"{path}: {file_bytes} bytes decompress to at least {n_bytes}; above {small} bytes the limit is "
        f"{MOST_TIMES_PACKED} times the file size"
    )


def _check_texts(path: Path, table: pa.Table) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
            longest = _longest(cast(pa.DictionaryArray, chunk).dictionary)
            if longest > LONGEST_TEXT_BYTES:
                raise BarsError(
                    f"{path}: column {name!r} has a text of {longest} bytes, the limit is {LONGEST_TEXT_BYTES}"
                )


def _longest(texts: pa.Array) -> int:
    """Return the length of the longest text in bytes."""
    compute: Any = pc  # creates its functions at import, which type checkers do not see
    return compute.max(compute.binary_length(texts)).as_py() or 0


def _digest(frame: pd.DataFrame) -> bytes:
    """Return the SHA-256 of names, types and pandas' hash of every row."""
    names = repr([(str(name), str(dtype)) for name, dtype in frame.dtypes.items()])
    rows = np.asarray(cast(Any, hash_pandas_object)(frame, index=False))
    return hashlib.sha256(names.encode() + rows.tobytes()).hexdigest().encode()


def write_parquet(bars: pd.DataFrame, file: BinaryIO) -> None:
    """Write bars with a checksum per page and one of all values. Other readers may ignore them."""
    table = pa.Table.from_pandas(bars, preserve_index=False)
    table = pa.table(
        {name: _as_read_back(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    )
    # Without Arrow's schema, only column names and plain types can be damaged.
    with pq.ParquetWriter(file, table.schema, store_schema=False, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({DIGEST: _digest(table.to_pandas(ignore_metadata=True))})


def _as_read_back(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a column to the type that `read_parquet` returns. Parquet has no times in seconds."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return column.cast(pa.timestamp("ms", kind.tz))
    if _is_text(kind) or (pa.types.is_dictionary(kind) and _is_text(kind.value_type)):
        return column.cast(pa.string()).dictionary_encode()
    return column


# ---------------------------------------------------------------------------------------------------------------- csv


@dataclass(frozen=True)
class Dialect:
    """Format of a CSV file, detected from its beginning."""

    encoding: str
    separator: str
    n_lines_before: int  # lines before the rows: titles, comments and the header
    names: tuple[str, ...]


def read_csv(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    """Read all columns of a .csv or .csv.gz file. With fewer columns, pandas would not detect rows with extra fields.

    Separators are commas, semicolons, tabs or vertical bars. Any line ending is supported. UTF-16 requires a byte order
    mark. Decimal commas are supported if they are unambiguous. Lines that start with # are comments.

    Raises:
        BarsError: the file is damaged, too large or ambiguous.
    """
    with _decoding(path, "CSV"):
        with _binary(path) as file:
            _check_text_size(path, file)
        dialect = _dialect(path, wanted)
        check_names(dialect.names, wanted, str(path))
        table = _parse(path, dialect)
        if _has_decimal_commas(path, table, wanted):
            table = _parse(path, dialect, decimal=",")
            _check_decimal_commas(path, table, wanted)
    if len(table) > MOST_ROWS:
        raise BarsError(f"{path}: has {len(table)} rows, but the limit is {MOST_ROWS}; split it by time")
    return table


def _binary(path: Path) -> gzip.GzipFile | BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


@contextmanager
def _text(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    """Open a file as text with newline line endings, including files with lone carriage returns."""
    try:
        with _binary(path) as file, io.TextIOWrapper(cast(BinaryIO, file), encoding=encoding) as text:
            yield text
    except UnicodeDecodeError as error:
        wrong = bytes(error.object[error.start : error.start + 1]).hex()
        raise BarsError(
            f"{path}: not {encoding.removesuffix('-sig').upper()} text (byte 0x{wrong}); save it as UTF-8"
        ) from error


def _dialect(path: Path, wanted: Sequence[str]) -> Dialect:
    """Detect the format. The header is the first line with the most required columns, for the best separator."""
    with _binary(path) as file:
        first_bytes = file.read(LONGEST_HEADER_BYTES)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if first_bytes.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in first_bytes:
        raise BarsError(f"{path}: UTF-16 text without a byte order mark, or not text; save it as UTF-8")
    with _text(path, encoding) as text:
        head = text.read(LONGEST_HEADER_BYTES)
    lines = head.split("\n")
    if len(head) >= LONGEST_HEADER_BYTES - 2:
        lines.pop()  # truncated
    if not lines:
        reason = f"a first line of {LONGEST_HEADER_BYTES} bytes"
        raise BarsError(f"{path}: not a readable CSV file ({reason}); download it again")
    places = [n for n, line in enumerate(lines) if line.strip()][:MOST_TITLE_LINES] or [0]
    found = {(n, mark): _fields(lines[n], mark) for n in places for mark in SEPARATORS}
    n_wanted = {place: sum(name in wanted for name in _tidy(names)) for place, names in found.items()}
    n, separator = max(n_wanted, key=lambda place: n_wanted[place])
    if separator == " ":
        raise BarsError(f"{path}: the columns are separated by spaces; separate them by commas")
    if not any(found[n, separator]):
        raise BarsError(f"{path}: has no header line with column names")
    names, rows = _tidy(found[n, separator]), [line for line in lines[n + 1 :] if line.strip()]
    first_row = next((_fields(line, separator) for line in rows if not line.startswith("#")), [])
    if len(first_row) == len(names) + 1 and not first_row[-1].strip():
        names.append("")  # every row ends with a separator
    return Dialect(encoding, separator, n + 1, tuple(names))


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])


def _tidy(names: Sequence[str]) -> list[str]:
    """Return names in lower case without surrounding spaces and comment marks."""
    return [name.strip().lstrip("# ").lower() for name in names]


def _parse(path: Path, dialect: Dialect, decimal: str = ".") -> pd.DataFrame:
    with _text(path, dialect.encoding) as text, warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # text among numbers is rejected later, with its row
        for _ in range(dialect.n_lines_before):
            text.readline()
        try:
            table = pd.read_csv(
                text,
                sep=dialect.separator,
                decimal=decimal,
                header=None,
                names=range(len(dialect.names)),
                comment="#",
                skipinitialspace=True,
            )
        except pd.errors.ParserError as error:
            found = re.search(r"in line (\d+), saw (\d+)", str(error))
            if found is None:
                raise
            where = f"{path}: line {int(found[1]) + dialect.n_lines_before} has {found[2]} fields"
            raise BarsError(f"{where}, but the header has {len(dialect.names)}; {TOO_MANY_FIELDS}") from error
    if not isinstance(table.index, pd.RangeIndex) or (not dialect.names[-1] and int(table.iloc[:, -1].count()) > 0):
        raise BarsError(f"{path}: a row has more fields than the {len(dialect.names)} of the header; {TOO_MANY_FIELDS}")
    return table.set_axis(list(dialect.names), axis=1)


def _has_decimal_commas(path: Path, table: pd.DataFrame, wanted: Sequence[str]) -> bool:
    """Return True if text in numeric columns certainly has decimal commas.

    1,234 may be 1234 or 1.234. A single number such as 42000,5 or 0,123 decides for the whole file.
    """
    values = _texts_for_numbers(table, wanted)
    commas = values.loc[values.str.fullmatch(DECIMAL_COMMA)]
    if len(commas) and commas.str.fullmatch(THOUSANDS).all():
        raise BarsError(
            f"{path}: row {commas.index[0]} has {commas.iloc[0]!r}, with a decimal comma or a thousands separator; "
            "use decimal points and no thousands separators"
        )
    return len(commas) > 0


def _check_decimal_commas(path: Path, table: pd.DataFrame, wanted: Sequence[str]) -> None:
    """Raise BarsError for text in numeric columns of a file with decimal commas."""
    values = _texts_for_numbers(table, wanted)
    strange = values.loc[~values.str.fullmatch(DECIMAL_COMMA) & ~values.str.fullmatch(r"[+-]?\d+")]
    if len(strange):
        raise BarsError(
            f"{path}: row {strange.index[0]} has {strange.iloc[0][:40]!r} in a file with decimal commas; use decimal "
            "points everywhere and no thousands separators"
        )


def _texts_for_numbers(table: pd.DataFrame, wanted: Sequence[str]) -> pd.Series:
    """Return the values of numeric columns that pandas did not parse as numbers."""
    names = [name for name in wanted if name in table.columns and name not in NOT_NUMBERS]
    texts = [table[name].dropna().astype(str).str.strip() for name in names if not is_numeric_dtype(table[name])]
    return pd.Series(pd.concat([pd.Series(dtype=str), *texts]))


def _check_text_size(path: Path, file: gzip.GzipFile | BinaryIO) -> None:
    """Decompress a file once without keeping the text, so that a large file uses no memory."""
    file_bytes = n_bytes = path.stat().st_size
    if path.suffix == ".gz":
        n_bytes = 0
        while n_bytes <= MOST_TEXT_BYTES and (part := file.read(2**20)):
            n_bytes += len(part)
            if n_bytes > max(SMALL_TEXT_BYTES, MOST_TIMES_PACKED * file_bytes):
                raise BarsError(_too_packed(path, n_bytes, file_bytes, SMALL_TEXT_BYTES))
    if n_bytes > MOST_TEXT_BYTES:
        raise BarsError(f"{path}: has more text than the limit of {MOST_TEXT_BYTES} bytes; split it")
