"""The hosts' pickles: what comes in, at which times, and what never runs."""

import pickle
import struct
import subprocess
import sys
from itertools import product

import numpy as np
import pandas as pd
import pytest

from market.dataset import load_dataset, save_dataset
from market.defaults import WARMUP_BARS
from market.errors import DatasetError
from market.host_import import FEATURE_SET, dataset_from_host
from market.host_pickles import load_host_array

OPEN = 1_704_067_200 + 300 * np.arange(120)  # 2024-01-01
TICKERS = ("BTC", "ETH")


def host_arrays(**changes):
    """120 bars of two coins with three features each, without a gap."""
    rng = np.random.default_rng(0)
    price = np.exp(np.cumsum(rng.normal(0, 0.01, (120, 2)), axis=0)) * [60_000.0, 3_000.0]
    arrays = {"price_array": price, "tech_array": rng.normal(size=(120, 6)), "time_array": OPEN.astype(float)}
    return arrays | changes


@pytest.fixture
def host(tmp_path):
    """Write a host's folder; an array of None is left out."""

    def write(**changes):
        folder = tmp_path / "a host"
        folder.mkdir(exist_ok=True)
        for name, value in host_arrays(**changes).items():
            (folder / name).write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
            if value is None:
                (folder / name).unlink()
        return folder

    return write


def bring_in(folder, tickers=TICKERS, **options):
    return dataset_from_host(folder, tickers, 300, **options)


def test_a_hosts_folder_becomes_a_dataset_stamped_with_the_close(host, tmp_path):
    arrays = host_arrays()
    dataset = bring_in(host(), ("BTC/USD", "ethusdt"))
    assert dataset.tickers == TICKERS
    assert dataset.feature_names == tuple(f"{t}:column_{i}" for t in TICKERS for i in range(3))
    assert dataset.time.tolist() == (OPEN + 300).tolist()
    assert dataset.price.tobytes() == arrays["price_array"].tobytes()
    assert dataset.tech.tobytes() == arrays["tech_array"].astype(np.float32).tobytes()
    assert (dataset.feature_set, dataset.warmup_bars) == (FEATURE_SET, WARMUP_BARS)
    assert dataset.segments == ((0, 120),)
    assert not dataset.filled.any()
    assert not dataset.synthetic
    assert bring_in(host(), synthetic=True).synthetic
    assert dataset.with_tickers(["ETH"]).feature_names == ("ETH:column_0", "ETH:column_1", "ETH:column_2")
    save_dataset(dataset, tmp_path / "out")
    assert load_dataset(tmp_path / "out").sha256 == dataset.sha256


@pytest.mark.parametrize(
    "times",
    [
        OPEN,
        OPEN.astype(np.float64),
        OPEN * 1_000,
        OPEN.astype("M8[s]"),
        OPEN.astype("M8[s]").astype("M8[ms]"),
        OPEN.astype("M8[s]").astype("M8[us]"),
        OPEN.astype("M8[s]").astype("M8[ns]"),
        OPEN.astype("M8[s]").astype(">M8[ns]"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_every_way_a_host_keeps_its_times_gives_the_same_closes(host, times, protocol):
    folder = host(time_array=pickle.dumps(times, protocol=protocol))
    assert bring_in(folder).time.tolist() == (OPEN + 300).tolist()


def test_gaps_split_the_data_and_runs_too_short_to_use_are_left_out(host):
    # 50 bars, 4 missing, 20 bars (too few), 1 missing, 50 bars
    opens = OPEN + 300 * (4 * (np.arange(120) >= 50) + 1 * (np.arange(120) >= 70))
    dataset = bring_in(host(time_array=opens.astype(float)))
    assert dataset.segments == ((0, 50), (50, 100))
    assert dataset.time.tolist() == (np.concatenate([opens[:50], opens[70:]]) + 300).tolist()
    assert (
        dataset.price.tobytes()
        == np.concatenate([host_arrays()["price_array"][i] for i in (slice(50), slice(70, 120))]).tobytes()
    )
    quality = dataset.quality
    assert (quality["grid_bars"], quality["used_bars"]) == (125, 100)
    assert quality["dropped_bars"] == {"outside": 0, "gaps": 5, "too_short": 20, "warmup": 0}
    found = quality["tickers"]["ETH"]
    assert (found["missing_bars"], found["gaps"], found["longest_gap_bars"]) == (5, 2, 4)
    # A host keeps neither volumes nor highs and lows: unknown is not zero.
    assert found["zero_volume_bars"] is None
    assert found["flat_bars"] is None


def test_times_can_be_counted_from_a_start_and_the_dataset_says_so(host):
    folder = host(time_array=None)
    with pytest.raises(DatasetError, match=r"time_array: no such file; pass --start DATE"):
        bring_in(folder)
    start = pd.Timestamp("2024-01-01", tz="UTC").to_pydatetime()
    dataset = bring_in(folder, start=start)
    assert dataset.time.tolist() == (OPEN + 300).tolist()
    assert dataset.source == "host folder a host, times counted from --start"


def test_a_pandas_index_is_refused_and_the_way_out_named(host):
    folder = host(time_array=pd.DatetimeIndex(OPEN.astype("M8[s]")))
    with pytest.raises(DatasetError, match=r"time_array: rejected.*uses 'pandas.*pass --start DATE"):
        bring_in(folder)


def poke(name, place, value):
    array = host_arrays()[name].copy()
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (poke("price_array", (7, 1), np.nan), "price_array: ETH at row 7 is nan, expected a positive number"),
        (poke("price_array", (7, 0), 0.0), "price_array: BTC at row 7 is 0.0"),
        (poke("tech_array", (9, 4), 1e39), r"tech_array: ETH:column_1 at row 9 is 1e\+39, expected .* float32"),
        (poke("tech_array", (9, 4), np.nan), "tech_array: ETH:column_1 at row 9 is nan"),
        (poke("tech_array", (9, 4), -np.inf), "tech_array: ETH:column_1 at row 9 is -inf"),
        (poke("time_array", 5, np.nan), "time_array: row 5 is nan, expected whole UTC seconds"),
        (poke("time_array", 5, OPEN[5] + 0.5), "time_array: row 5 is"),
        (poke("time_array", 5, 12.0), "time_array: row 5 is 12.0"),
        (poke("time_array", 5, OPEN[4]), "time_array: step of 0 s at row 5"),
        (poke("time_array", 5, OPEN[4] + 60), "step of 60 s at row 5 .*check --timeframe 5m"),
        ({"time_array": OPEN[::-1].astype(float)}, "step of -300 s at row 1"),
        ({"time_array": np.append(OPEN[:-1], OPEN[-1] + 300 * 10**5)}, "only 120 rows cover"),
        ({"time_array": OPEN[:-1].astype(float)}, "time_array: has 119 rows, but price_array has 120"),
        ({"time_array": np.full(120, "NaT", "M8[ns]")}, "time_array: row 0 is NaT"),
        ({"price_array": np.ones((120, 3))}, r"has 3 columns, but --tickers names 2 coins \(BTC, ETH\)"),
        ({"price_array": np.ones(120)}, r"price_array: has shape \(120,\)"),
        ({"price_array": OPEN.astype("M8[s]")[:, None]}, "price_array: has shape .* and dtype datetime64"),
        ({"tech_array": np.ones((120, 5))}, "has 5 columns, not a multiple of 2 coins"),
        ({"tech_array": np.ones((119, 6))}, "tech_array: has 119 rows"),
        ({"price_array": np.ones((120, 2), dtype=object)}, "price_array: rejected"),
        ({"price_array": b"garbage"}, "price_array: "),
        ({"tech_array": pickle.dumps(np.ones((120, 6)))[:-30]}, "tech_array: "),
    ],
)
def test_what_a_simulator_could_misread_is_refused_in_one_line(host, changes, message):
    with pytest.raises(DatasetError, match=message) as caught:
        bring_in(host(**changes))
    assert "\n" not in str(caught.value)


def test_too_few_rows_and_an_absent_folder_are_refused(host, tmp_path):
    few = {name: array[:20] for name, array in host_arrays().items()}
    with pytest.raises(DatasetError, match="no run of 5m bars is 32 bars long"):
        bring_in(host(**few))
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        bring_in(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------- what never runs


class Call:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def global_name(module, name):
    return b"c" + module + b"\n" + name + b"\n"


ARRAY = global_name(b"numpy._core.multiarray", b"_reconstruct") + b"(tR"
DTYPE = global_name(b"numpy", b"dtype")
ENCODE = global_name(b"_codecs", b"encode")


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Call(eval, "1 + 1")),
        pickle.dumps([np.ones(2), Call(print, Call(eval, "1 + 1"))]),
        pickle.dumps({"a": Call(getattr, 1, "real")}),
        pickle.dumps(np.array([Call(eval, "1")], dtype=object)),
        pickle.dumps(np.zeros(2, dtype=[("a", "f8"), ("b", "O")])),
        DTYPE + b"(S'O8'\ntR.",
        DTYPE + b"(S'f8,O'\ntR.",
        ENCODE + b"(Vx\nS'rot13'\ntR.",
        ENCODE + b"(dS'__doc__'\nS'changed'\nsb.",
        ENCODE + b"(NNtb.",
        DTYPE + b"(I3\nS'<'\ntb.",
        global_name(b"market.host_pickles", b"ALLOWED") + b".",
        global_name(b"builtins", b"eval") + b"(S'1'\ntR.",
    ],
)
def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path, content):
    (tmp_path / "price_array").write_bytes(content)
    with pytest.raises(DatasetError, match="price_array: rejected"):
        load_host_array(tmp_path / "price_array")


def test_a_forged_dtype_cannot_make_numbers_into_objects(tmp_path):
    # NumPy's own dtype takes flags from its state; with these an array of numbers would be freed as one of objects.
    flags = b"(I3\nS'<'\nNNNI-1\nI-1\nI63\ntb"
    content = struct.pack("<2d", 1.0, 2.0)
    state = (
        b"(I1\n(I2\nt" + DTYPE + b"(S'f8'\nI0\nI1\ntR" + flags + b"I00\nC" + bytes([len(content)]) + content + b"tb."
    )
    (tmp_path / "a").write_bytes(b"\x80\x03" + ARRAY + state)
    array = load_host_array(tmp_path / "a")
    assert array.tolist() == [1.0, 2.0]
    assert not array.dtype.hasobject


@pytest.mark.parametrize("shape", [b"(I1000000000000\nt", b"(I-2\nt", b"(I4611686018427387904\nI4\nt"])
def test_a_shape_that_lies_costs_no_memory(tmp_path, shape):
    state = b"(I1\n" + shape + DTYPE + b"(S'f8'\ntRI00\nC\x08" + bytes(8) + b"tb."
    (tmp_path / "a").write_bytes(b"\x80\x03" + ARRAY + state)
    with pytest.raises(DatasetError, match="not a complete pickle of an array"):
        load_host_array(tmp_path / "a")


def short_text(text):
    return b"X" + struct.pack("<I", len(text)) + text


def array_of_shape(shape):
    """An array of eight bytes with any program for its shape."""
    return b"\x80\x03" + ARRAY + b"(I1\n" + shape + DTYPE + b"(S'f8'\ntRI00\nC\x08" + bytes(8) + b"tb."


MILLION = 10**6
NESTED = b"))\x86" + b"2\x86" * 600  # a tuple of itself twice, 600 times
COSTLY = {
    "a place in the memo": b"\x80\x03Nr" + struct.pack("<I", 60_000_000) + b".",
    "a large PUT": b"Np60000000\n.",
    "one text turned into bytes often": b"\x80\x02"
    + short_text(b"x" * MILLION)
    + b"q\x000"
    + (ENCODE + b"h\x00\x85R") * 20_000
    + b".",
    "one text turned into bytes 19 times": b"\x80\x02"
    + short_text(b"x" * 50 * MILLION)
    + b"q\x000]"
    + (ENCODE + b"h\x00\x85Ra") * 19
    + b".",
    "a shape of bytes": array_of_shape(b"B" + struct.pack("<I", 400_000) + b"\xff" * 400_000),
    "a shape of text": array_of_shape(b"X" + struct.pack("<I", 400_000) + b"9" * 400_000),
    "a shape of large numbers": array_of_shape(
        b"(" + (b"\x8b" + struct.pack("<i", 60_000) + b"\x7f" * 60_000) * 4 + b"t"
    ),
    "a long number": b"L" + b"9" * MILLION + b"L\n.",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "tuples in tuples": b")" + b"\x85" * 100_000 + b".",
    "a dtype of nested tuples": DTYPE + NESTED + b"\x85R.",
    "an encoding of nested tuples": ENCODE + b"(Vx\n" + NESTED + b"tR.",
    "a key of nested tuples": b"}" + NESTED + b"Ns.",
    "an order of nested tuples": global_name(b"numpy._core.numeric", b"_frombuffer") + b"(NN)" + NESTED + b"tR.",
    "a unit of nested tuples": DTYPE + b"(S'M8'\ntR(I4\nS'<'\nNNNI-1\nI-1\nI0\n(N" + NESTED + b"I1\n\x86ttb.",
    "a line break in a name": b"\x80\x04" + b"\x8c\x0bpan\ndas\x1b[2J\x8c\x01x\x93.",
    "an escape in a name": b"cpan\x1b[2Jdas\nx\n.",
    "an escape in a descriptor": DTYPE + b"(Vx\x1b[2J\\u000ay\ntR.",
    "an escape in an instruction": b"\x1b\n",
    "a foreign persistent name": b"Pnowhere\n.",
}

MEASURED = """
import resource, sys, time
from market.errors import DatasetError
from market.host_pickles import load_host_array
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
for path in sys.argv[1:]:
    start = time.perf_counter()
    try:
        load_host_array(path)
    except DatasetError as error:
        assert str(error).isprintable(), path
        assert len(str(error)) < 400, path
    else:
        raise AssertionError(path)
    assert time.perf_counter() - start < 2.0, path
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - own)
"""


def test_a_pickle_made_to_cost_memory_or_time_is_refused_cheaply_in_one_line(tmp_path):
    paths = [tmp_path / str(n) for n in range(len(COSTLY))]
    for path, content in zip(paths, COSTLY.values(), strict=True):
        path.write_bytes(content)
    done = subprocess.run([sys.executable, "-c", MEASURED, *paths], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-800:]
    assert int(done.stdout) < 350 * 1024  # kB, most of it for the file of 50 MB


def test_no_flipped_bit_of_a_pickle_ends_in_anything_but_an_array_or_one_line(tmp_path):
    path = tmp_path / "price_array"
    for protocol, bits in ((0, (3, 5)), (2, range(8)), (5, (0, 4))):
        content = pickle.dumps(np.arange(3.0), protocol=protocol)
        for place, bit in product(range(len(content)), bits):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            try:
                load_host_array(path)
            except DatasetError as error:
                if not str(error).isprintable():
                    pytest.fail(f"protocol {protocol}, byte {place}, bit {bit}: {error}")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", range(6))
def test_order_and_byte_order_of_an_array_survive(tmp_path, order, protocol):
    for dtype in ("<f8", ">f8", "<f4", "<i4", "<i8", ">u2"):
        array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
        (tmp_path / "a").write_bytes(pickle.dumps(array, protocol=protocol))
        again = load_host_array(tmp_path / "a")
        assert (again.tolist(), again.dtype) == (array.tolist(), array.dtype)


def test_bytes_that_grow_while_an_array_looks_at_them_are_a_damaged_file(tmp_path):
    """BYTEARRAY8 made an array, then appended to: Python refuses it with a BufferError."""

    def named(module: str, name: str) -> bytes:
        return f"c{module}\n{name}\n".encode()

    content = b"\x96" + (8).to_bytes(8, "little") + bytes(8) + b"q\x010"
    dtype = named("numpy", "dtype") + b"(X\x02\x00\x00\x00f8I0\nI1\ntR"
    array = named("numpy._core.numeric", "_frombuffer") + b"(h\x01" + dtype + b"(K\x01tX\x01\x00\x00\x00CtR"
    (tmp_path / "a").write_bytes(b"\x80\x05" + content + array + b"q\x020h\x01K\x05a.")
    with pytest.raises(DatasetError, match="not a complete pickle of an array"):
        load_host_array(tmp_path / "a")
