"""CSV files as programs of this world write them: each is read to the same bars or refused by what it is."""

import gzip
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.bars.candles import PRICES, read_bars, tidy_bars
from market.errors import BarsError
from tests.support.bars_server import made_up_bars, seconds

STEP = 300
NUMBERS = [*PRICES, "volume"]
UTC_TIMES = {
    "s": lambda s: s,
    "ms": lambda s: s * 1_000,
    "us": lambda s: s * 1_000_000,
    "ns": lambda s: s * 1_000_000_000,
    "T and Z": lambda s: pd.to_datetime(s, unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "offset": lambda s: pd.to_datetime(s + 19_800, unit="s").dt.strftime("%Y-%m-%dT%H:%M:%S+05:30"),
    "blank": lambda s: pd.to_datetime(s, unit="s").dt.strftime("%Y-%m-%d %H:%M:%S"),
    "ms text": lambda s: pd.to_datetime(s, unit="s").dt.strftime("%Y-%m-%d %H:%M:%S.000"),
}
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8-sig": lambda text: text.encode("utf-8-sig"),
    "utf-16-le": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "utf-16-be": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
}
ORDERS = {
    "sorted": lambda rows: rows,
    "reversed": lambda rows: rows.iloc[::-1],
    "by time": lambda rows: rows.sort_values("timestamp", kind="stable"),
    "shuffled": lambda rows: rows.sample(frac=1.0, random_state=3),
}
BEFORE = ["", "https://www.example.org\n", "sep={sep}\n", "# a, b; c\n\n", "BTC and ETH, 5 minutes\r\n\r\n"]
AFTER = ["", "{sep}"]
LINE_ENDS = ["\n", "\r\n", "\r"]
SEPARATORS = [",", ";", "\t", "|"]


def rows_of(n_bars=30):
    """Prices with a decimal that is not zero, volumes with whole ones among them."""
    first = seconds(2025, 1, 1)
    tables = [made_up_bars(s, first, first + n_bars * STEP, STEP).assign(symbol=s) for s in ("BTC/USDT", "ÉTH/USDT")]
    rows = pd.concat(tables, ignore_index=True).rename(columns={"time": "timestamp"})
    rows[list(PRICES)] += 2_000.25
    return rows[["timestamp", "symbol", *NUMBERS]]


EXPECTED = tidy_bars(rows_of(), "t")


def text_of(rows, separator, decimal=".", quoting=0, line_end="\n", before="", after=""):
    lines = rows.to_csv(index=False, sep=separator, decimal=decimal, quoting=quoting).splitlines()
    text = before.format(sep=separator) + "".join(f"{line}{after.format(sep=separator)}\n" for line in lines)
    return text.replace("\r", "").replace("\n", line_end)


def written(folder, content, is_packed=False):
    path = Path(folder) / ("bars.csv.gz" if is_packed else "bars.csv")
    path.write_bytes(gzip.compress(content) if is_packed else content)
    return path


@given(
    separator=st.sampled_from(SEPARATORS),
    decimal=st.sampled_from([".", ","]),
    quoting=st.sampled_from([0, 1]),
    line_end=st.sampled_from(LINE_ENDS),
    before=st.sampled_from(BEFORE),
    after=st.sampled_from(AFTER),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    order=st.sampled_from(sorted(ORDERS)),
    time=st.sampled_from(sorted(UTC_TIMES)),
    stamp=st.sampled_from(["open", "close"]),
    is_packed=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_dialect_encoding_order_and_stamp_gives_the_same_bars(
    tmp_path_factory, separator, decimal, quoting, line_end, before, after, encoding, order, time, stamp, is_packed
):
    rows = ORDERS[order](rows_of())
    rows["timestamp"] = UTC_TIMES[time](rows["timestamp"] + (STEP if stamp == "close" else 0))
    text = text_of(rows, separator, decimal, quoting, line_end, before, after)
    path = written(tmp_path_factory.mktemp("dialect"), ENCODINGS[encoding](text), is_packed)
    pd.testing.assert_frame_equal(read_bars(path, stamp), EXPECTED)


@pytest.mark.parametrize(("separator", "decimal"), [*itertools.product([",", ";", "\t"], [".", ","])])
def test_real_bars_are_the_same_in_every_dialect(real_bars_dir, tmp_path, separator, decimal):
    source = real_bars_dir / "fixture_7coins_5m_2024-08-04_06.csv"
    text = text_of(pd.read_csv(source), separator, decimal, line_end="\r", before="a title\n")
    found = read_bars(written(tmp_path, text.encode("utf-16")))
    pd.testing.assert_frame_equal(found, read_bars(source))


def grouped(rows, form):
    return rows.assign(**{name: [form(value) for value in rows[name]] for name in NUMBERS})


def german(value):
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


def in_thousandths(value):
    return f"{value:.3f}".replace(".", ",")


def mixed(value):
    return f"{value:.2f}".replace(".", "," if value > 2_090 else ".")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: text_of(grouped(r, "{:,.2f}".format), ";"), "row 0: open is '2,100.25', expected a number such as"),
        (lambda r: text_of(grouped(r, "{:,.2f}".format), ","), "row 0: open is '2,100.25', expected a number such as"),
        (lambda r: text_of(grouped(r, german), ";"), r"has '2\.100,25' in a file with decimal commas"),
        (lambda r: text_of(grouped(r, "{:,.0f}".format), ";"), "has '2,100', with a decimal comma or a thousands"),
        (lambda r: text_of(grouped(r, mixed), ";"), r"in a file with decimal commas; use decimal"),
        (lambda r: text_of(r, ";", ",").replace(";", ","), "fields.*the header|more fields than the 7 of the header"),
        (lambda r: text_of(r, " "), "columns are separated by spaces; separate them by commas"),
        (lambda r: text_of(r.rename(columns={"open": "o", "high": "h"}), ";"), "column open, high is missing"),
        (lambda r: "", "has no header line with column names"),
        (lambda r: "\n\n", "has no header line with column names"),
        (lambda r: "a title\n", "column timestamp, symbol, .* is missing"),
    ],
)
def test_what_cannot_be_read_for_certain_is_refused_by_what_it_is(tmp_path, make, message):
    path = written(tmp_path, make(rows_of()).encode())
    with pytest.raises(BarsError, match=message) as caught:
        read_bars(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "download it again" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text_of(rows_of(), ",").encode("utf-16-le"), "UTF-16 text without a byte order mark.*save it as UTF-8"),
        (text_of(rows_of(), ",").encode("latin-1"), r"not UTF-8 text \(byte 0xc9\); save it as UTF-8"),
        (text_of(rows_of(3_000), ",").encode("latin-1"), r"not UTF-8 text \(byte 0xc9\); save it as UTF-8"),
        (text_of(rows_of(), ",").encode("utf-16")[:-1], "not UTF-16 text"),
    ],
)
def test_an_encoding_that_is_not_told_is_named(tmp_path, content, message):
    with pytest.raises(BarsError, match=message):
        read_bars(written(tmp_path, content))


def test_one_number_settles_what_a_comma_is_and_none_leaves_it_open(tmp_path):
    rows = rows_of()
    rows[NUMBERS] = np.round(rows[NUMBERS], 2)
    rows["volume"] = 1.25
    thousandths = grouped(rows, in_thousandths)
    with pytest.raises(BarsError, match="has '1,250', with a decimal comma or a thousands separator"):
        read_bars(written(tmp_path, text_of(grouped(rows, lambda value: "1,250"), ";").encode()))
    # 2100,250 has four digits before the comma, so 1,250 is 1.25.
    pd.testing.assert_frame_equal(
        read_bars(written(tmp_path, text_of(thousandths, ";").encode())), tidy_bars(rows, "t")
    )


@pytest.mark.parametrize("place", [1, 40, 5_000])
@pytest.mark.parametrize("comment", ["# made, by, me, with, a, lot, of, commas", "#", "# made by me"])
def test_comments_and_blank_lines_are_skipped_wherever_they_are(tmp_path, place, comment):
    rows = rows_of(3_000)
    lines = text_of(rows, ",").splitlines()
    lines[place:place] = [comment, "", comment]
    found = read_bars(written(tmp_path, "\n".join(lines).encode()))
    pd.testing.assert_frame_equal(found, tidy_bars(rows, "t"))
    lines[lines.index("timestamp,symbol,open,high,low,close,volume")] = "# timestamp,symbol,open,high,low,close,volume"
    found = read_bars(written(tmp_path, "\n".join(lines).encode()))
    pd.testing.assert_frame_equal(found, tidy_bars(rows, "t"))


@pytest.mark.parametrize("quoting", [0, 1])
def test_blanks_after_separators_are_no_part_of_a_name(tmp_path, quoting):
    text = text_of(rows_of(), ",", quoting=quoting).replace(",", ", ")
    pd.testing.assert_frame_equal(read_bars(written(tmp_path, text.encode())), EXPECTED)


def test_a_separator_at_the_end_of_rows_only_is_no_column(tmp_path):
    header, *rows = text_of(rows_of(), ",").splitlines()
    path = written(tmp_path, "\n".join([header, *(f"{row}," for row in rows)]).encode())
    pd.testing.assert_frame_equal(read_bars(path), EXPECTED)
    path = written(tmp_path, "\n".join([header, *(f"{row}," for row in rows[:-1]), f"{rows[-1]},7"]).encode())
    with pytest.raises(BarsError, match=r"a row has more fields than the .* of the header; use decimal points"):
        read_bars(path)
