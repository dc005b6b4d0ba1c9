"""Tables of bars from files that anybody may have written: the columns bars need, within limits, or one line.

A small file may decode to more than the machine has, so the sizes that a Parquet file claims are compared with the
limits before anything is read, and a CSV file is counted while it is decompressed.

Parquet files of `write_parquet` carry a checksum in every page and one of all values, so that no damaged bit changes a
bar or loses the mark of a made-up one. A plain CSV file has no such thing: a changed digit is another price.
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

MOST_ROWS = 100_000_000  # 18 coins' one-minute bars of ten years are 95 million
MOST_TEXT_BYTES = 16 * 2**30  # of a CSV file, decompressed: MOST_ROWS rows of 160 characters
# A file of bars is rarely packed to less than a tenth. Small tables may be, of a coin that never traded.
MOST_TIMES_PACKED = 50
SMALL_TABLE_BYTES, SMALL_TEXT_BYTES = 256 * 2**20, 32 * 2**20
LONGEST_HEADER_BYTES = 2**16
MOST_TITLE_LINES = 20  # not blank, up to the header
SEPARATORS = (",", ";", "\t", "|", " ")  # the last one to be refused
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NOT_NUMBERS = ("timestamp", "symbol", "synthetic")
DECIMAL_COMMA = r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?"
THOUSANDS = r"[+-]?[1-9]\d{0,2},\d{3}"
TOO_MANY_FIELDS = "write decimal points, or quote what holds a separator"
LONGEST_TEXT_BYTES = 100  # of a symbol or a time in a Parquet file, whose dictionary repeats it for nothing
DIGEST = b"bars_sha256"

# What the decoders are known to raise on damaged files: pyarrow its own errors and OSError; pandas ValueError (Unicode,
# JSON, ParserError), LookupError (columns, time zones), TypeError; gzip EOFError and zlib.error.
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
        raise BarsError(f"{path}: not a readable {kind} file ({shown}); fetch it again") from error


def check_names(names: Sequence[object], wanted: Sequence[str], where: str) -> None:
    """Refuse two columns of one name, which differ in capitals and spaces only, if it is one that bars need."""
    tidy = [str(name).strip().lower() for name in names]
    for name in wanted:
        if tidy.count(name) > 1:
            raise BarsError(f"{where}: has {tidy.count(name)} columns called {name}; keep one of them")


# ------------------------------------------------------------------------------------------------------------ parquet


def read_parquet(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    """The columns whose names are in `wanted`, whatever their capitals, as pandas makes them of a flat Parquet file."""
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
        raise BarsError(f"{path}: its values do not match their checksum; fetch it again")
    return frame


def _open(path: Path, text: Sequence[str]) -> pq.ParquetFile:
    """Text as a dictionary: a symbol that comes a million times is there once."""
    return pq.ParquetFile(path, read_dictionary=list(text), page_checksum_verification=True)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_type(path: Path, name: str, kind: pa.DataType) -> None:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    is_time = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if not (is_number or is_time or _is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise BarsError(f"{path}: column {name!r} is of {str(kind)[:60]!r}, expected numbers, text or times")


def _check_sizes(path: Path, metadata: pq.FileMetaData, n_columns: int) -> None:
    n_rows = metadata.num_rows
    if not 0 <= n_rows <= MOST_ROWS:
        raise BarsError(f"{path}: holds {n_rows} rows, more than the {MOST_ROWS} that are read; split it by time")
    # The sizes of single columns are not asked for: on a damaged file pyarrow ends the process instead of raising.
    unpacked = sum(max(metadata.row_group(i).total_byte_size, 0) for i in range(metadata.num_row_groups))
    n_bytes = max(unpacked, 8 * n_columns * n_rows)
    file_bytes = path.stat().st_size
    if n_bytes > max(SMALL_TABLE_BYTES, MOST_TIMES_PACKED * file_bytes):
        raise BarsError(_too_packed(path, n_bytes, file_bytes, SMALL_TABLE_BYTES))


def _too_packed(path: Path, n_bytes: int, file_bytes: int, small: int) -> str:
    return (
        f"{path}: unpacks from {file_bytes} to at least {n_bytes} bytes; above {small} bytes at most "
        f"{MOST_TIMES_PACKED} times its size is read"
    )


def _check_texts(path: Path, table: pa.Table) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
            longest = _longest(cast(pa.DictionaryArray, chunk).dictionary)
            if longest > LONGEST_TEXT_BYTES:
                raise BarsError(
                    f"{path}: column {name!r} holds a text of {longest} bytes, at most {LONGEST_TEXT_BYTES}"
                )


def _longest(texts: pa.Array) -> int:
    """Bytes of the longest text."""
    compute: Any = pc  # makes its functions when it is imported, which no checker sees
    return compute.max(compute.binary_length(texts)).as_py() or 0


def _digest(frame: pd.DataFrame) -> bytes:
    """SHA-256 over names, types and pandas' hash of every row."""
    names = repr([(str(name), str(dtype)) for name, dtype in frame.dtypes.items()])
    rows = np.asarray(cast(Any, hash_pandas_object)(frame, index=False))
    return hashlib.sha256(names.encode() + rows.tobytes()).hexdigest().encode()


def write_parquet(bars: pd.DataFrame, file: BinaryIO) -> None:
    """Columns that bars need, with a checksum in every page and one of all values, which other readers may ignore."""
    table = pa.Table.from_pandas(bars, preserve_index=False)
    table = pa.table(
        {name: _as_read_back(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    )
    # Without Arrow's own schema nothing but the columns' names and plain types can be damaged.
    with pq.ParquetWriter(file, table.schema, store_schema=False, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({DIGEST: _digest(table.to_pandas(ignore_metadata=True))})


def _as_read_back(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Parquet knows no times in seconds; `read_parquet` reads text as a dictionary."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return column.cast(pa.timestamp("ms", kind.tz))
    if _is_text(kind) or (pa.types.is_dictionary(kind) and _is_text(kind.value_type)):
        return column.cast(pa.string()).dictionary_encode()
    return column


# ---------------------------------------------------------------------------------------------------------------- csv


@dataclass(frozen=True)
class Dialect:
    """How the text of a CSV file is to be read, told from its beginning."""

    encoding: str
    separator: str
    n_lines_before: int  # the rows: titles, comments and the header
    names: tuple[str, ...]


def read_csv(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    """All columns of a .csv or .csv.gz file: with some left out, pandas would not mind a row of too many fields.

    Columns are separated by commas, semicolons, tabs or bars; lines end in any way; UTF-16 has a byte order mark.
    Decimal commas are read where no number can be meant otherwise. Lines that begin with # are comments.
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
        raise BarsError(f"{path}: holds {len(table)} rows, more than the {MOST_ROWS} that are read; split it by time")
    return table


def _binary(path: Path) -> gzip.GzipFile | BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


@contextmanager
def _text(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    """The text with every line end as a newline, lone carriage returns included."""
    try:
        with _binary(path) as file, io.TextIOWrapper(cast(BinaryIO, file), encoding=encoding) as text:
            yield text
    except UnicodeDecodeError as error:
        wrong = bytes(error.object[error.start : error.start + 1]).hex()
        raise BarsError(
            f"{path}: is not {encoding.removesuffix('-sig').upper()} text (byte 0x{wrong}); save it as UTF-8"
        ) from error


def _dialect(path: Path, wanted: Sequence[str]) -> Dialect:
    """The header is the line of the first ones that names the most columns, with the separator that finds them."""
    with _binary(path) as file:
        first_bytes = file.read(LONGEST_HEADER_BYTES)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if first_bytes.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in first_bytes:
        raise BarsError(f"{path}: is UTF-16 text without a byte order mark, or no text; save it as UTF-8")
    with _text(path, encoding) as text:
        head = text.read(LONGEST_HEADER_BYTES)
    lines = head.split("\n")
    if len(head) >= LONGEST_HEADER_BYTES - 2:
        lines.pop()  # cut off
    if not lines:
        reason = f"a first line of {LONGEST_HEADER_BYTES} bytes"
        raise BarsError(f"{path}: not a readable CSV file ({reason}); fetch it again")
    places = [n for n, line in enumerate(lines) if line.strip()][:MOST_TITLE_LINES] or [0]
    found = {(n, mark): _fields(lines[n], mark) for n in places for mark in SEPARATORS}
    n_wanted = {place: sum(name in wanted for name in _tidy(names)) for place, names in found.items()}
    n, separator = max(n_wanted, key=lambda place: n_wanted[place])
    if separator == " ":
        raise BarsError(f"{path}: its columns are separated by blanks; separate them by commas")
    if not any(found[n, separator]):
        raise BarsError(f"{path}: has no line with the names of its columns")
    names, rows = _tidy(found[n, separator]), [line for line in lines[n + 1 :] if line.strip()]
    first_row = next((_fields(line, separator) for line in rows if not line.startswith("#")), [])
    if len(first_row) == len(names) + 1 and not first_row[-1].strip():
        names.append("")  # every row ends with a separator
    return Dialect(encoding, separator, n + 1, tuple(names))


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])


def _tidy(names: Sequence[str]) -> list[str]:
    """Names without the blanks and the mark of a comment around them, in lower case."""
    return [name.strip().lstrip("# ").lower() for name in names]


def _parse(path: Path, dialect: Dialect, decimal: str = ".") -> pd.DataFrame:
    with _text(path, dialect.encoding) as text, warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # text among numbers is refused with its row
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
            raise BarsError(f"{where}, the header {len(dialect.names)}; {TOO_MANY_FIELDS}") from error
    if not isinstance(table.index, pd.RangeIndex) or (not dialect.names[-1] and int(table.iloc[:, -1].count()) > 0):
        raise BarsError(f"{path}: a row has more fields than the {len(dialect.names)} of the header; {TOO_MANY_FIELDS}")
    return table.set_axis(list(dialect.names), axis=1)


def _has_decimal_commas(path: Path, table: pd.DataFrame, wanted: Sequence[str]) -> bool:
    """Whether text in the columns of numbers has decimal commas for certain.

    1,234 alone may be 1234 or 1.234. One number such as 42000,5 or 0,123 settles it for the file.
    """
    values = _texts_for_numbers(table, wanted)
    commas = values.loc[values.str.fullmatch(DECIMAL_COMMA)]
    if len(commas) and commas.str.fullmatch(THOUSANDS).all():
        raise BarsError(
            f"{path}: row {commas.index[0]} holds {commas.iloc[0]!r}, with a decimal comma or a thousands separator; "
            "write decimal points and no thousands separators"
        )
    return len(commas) > 0


def _check_decimal_commas(path: Path, table: pd.DataFrame, wanted: Sequence[str]) -> None:
    """Refuse text in the columns of numbers, where decimal commas were read."""
    values = _texts_for_numbers(table, wanted)
    strange = values.loc[~values.str.fullmatch(DECIMAL_COMMA) & ~values.str.fullmatch(r"[+-]?\d+")]
    if len(strange):
        raise BarsError(
            f"{path}: row {strange.index[0]} holds {strange.iloc[0][:40]!r} in a file of decimal commas; write decimal "
            "points everywhere and no thousands separators"
        )


def _texts_for_numbers(table: pd.DataFrame, wanted: Sequence[str]) -> pd.Series:
    """Values of the columns of numbers that pandas did not read as numbers."""
    names = [name for name in wanted if name in table.columns and name not in NOT_NUMBERS]
    texts = [table[name].dropna().astype(str).str.strip() for name in names if not is_numeric_dtype(table[name])]
    return pd.Series(pd.concat([pd.Series(dtype=str), *texts]))


def _check_text_size(path: Path, file: gzip.GzipFile | BinaryIO) -> None:
    """Unpack a compressed file once without keeping the text, so that a large one costs no memory."""
    file_bytes = n_bytes = path.stat().st_size
    if path.suffix == ".gz":
        n_bytes = 0
        while n_bytes <= MOST_TEXT_BYTES and (part := file.read(2**20)):
            n_bytes += len(part)
            if n_bytes > max(SMALL_TEXT_BYTES, MOST_TIMES_PACKED * file_bytes):
                raise BarsError(_too_packed(path, n_bytes, file_bytes, SMALL_TEXT_BYTES))
    if n_bytes > MOST_TEXT_BYTES:
        raise BarsError(f"{path}: holds more than the {MOST_TEXT_BYTES} bytes of text that are read; split it")
