"""Tables of bars from files that anybody may have written: the columns bars need, within limits, or one line.

A small file may decode to more than the machine has, so the sizes that a Parquet file claims are compared with the
limits before anything is read, and a CSV file is counted while it is decompressed.

Parquet files of `write_parquet` carry a checksum in every page and one of all values, so that no damaged bit changes a
bar or loses the mark of a made-up one. A plain CSV file has no such thing: a changed digit is another price.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pandas.util import hash_pandas_object

from market.errors import BarsError

MOST_ROWS = 100_000_000  # 18 coins' one-minute bars of ten years are 95 million
MOST_TEXT_BYTES = 16 * 2**30  # of a CSV file, decompressed: MOST_ROWS rows of 160 characters
# A file of bars is rarely packed to less than a tenth. Small tables may be, of a coin that never traded.
MOST_TIMES_PACKED = 50
SMALL_TABLE_BYTES, SMALL_TEXT_BYTES = 256 * 2**20, 32 * 2**20
LONGEST_HEADER_BYTES = 2**16
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


def read_csv(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    """All columns of a .csv or .csv.gz file: with some left out, pandas would not mind a row of too many fields."""
    with _decoding(path, "CSV"), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        _check_text_size(path, file)
        check_names(_header(path, file), wanted, str(path))
        file.seek(0)
        table = pd.read_csv(file)
    if len(table) > MOST_ROWS:
        raise BarsError(f"{path}: holds {len(table)} rows, more than the {MOST_ROWS} that are read; split it by time")
    if not isinstance(table.index, pd.RangeIndex):
        raise BarsError(f"{path}: row 0 has more fields than the header has names; fetch it again")
    return table


def _check_text_size(path: Path, file: gzip.GzipFile | BinaryIO) -> None:
    """Unpack a compressed file once without keeping the text, so that a large one costs no memory."""
    file_bytes = n_bytes = path.stat().st_size
    if path.suffix == ".gz":
        n_bytes = 0
        while n_bytes <= MOST_TEXT_BYTES and (part := file.read(2**20)):
            n_bytes += len(part)
            if n_bytes > max(SMALL_TEXT_BYTES, MOST_TIMES_PACKED * file_bytes):
                raise BarsError(_too_packed(path, n_bytes, file_bytes, SMALL_TEXT_BYTES))
        file.seek(0)
    if n_bytes > MOST_TEXT_BYTES:
        raise BarsError(f"{path}: holds more than the {MOST_TEXT_BYTES} bytes of text that are read; split it")


def _header(path: Path, file: gzip.GzipFile | BinaryIO) -> list[str]:
    """The names in the first line that is not blank."""
    line = file.read(LONGEST_HEADER_BYTES).lstrip(b"\r\n").partition(b"\n")[0]
    if len(line) >= LONGEST_HEADER_BYTES - 2:
        reason = f"a first line of {LONGEST_HEADER_BYTES} bytes"
        raise BarsError(f"{path}: not a readable CSV file ({reason}); fetch it again")
    return next(csv.reader([line.decode("utf-8-sig")]), [])
