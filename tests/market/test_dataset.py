import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from market import dataset as dataset_module
from market import files
from market.checks import ARRAYS
from market.dataset import DatasetError, load_dataset, make_dataset, save_dataset
from market.files import read_array
from market.host_pickles import load_host_array
from market.venues import ALPACA, OrderRule


@pytest.fixture
def folder(dataset, tmp_path):
    save_dataset(dataset, tmp_path / "5m")
    return tmp_path / "5m"


def parts(dataset, **changes):
    names = ("price", "tech", "time", "tickers", "feature_names", "bar_seconds", "segments")
    names += ("filled", "feature_set", "warmup_bars", "venue")
    origin = ("source", "synthetic", "quality")
    return {name: getattr(dataset, name) for name in (*names, *origin)} | changes


def poke(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed


# ---------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("mmap", [True, False])
def test_a_dataset_comes_back_as_it_was_saved(dataset, folder, mmap):
    again = load_dataset(folder, mmap)
    for name, array in dataset.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
        assert again.arrays[name].dtype == array.dtype
    plain = ("tickers", "feature_names", "bar_seconds", "segments", "source", "synthetic", "sha256", "quality")
    plain += ("feature_set", "warmup_bars", "venue")
    assert [getattr(again, name) for name in plain] == [getattr(dataset, name) for name in plain]
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["5m"]


def test_the_shapes_types_and_label_are_the_contract(dataset):
    assert dataset.price.shape == (300, 2)
    assert dataset.tech.shape == (300, 34)
    assert [a.dtype.str for a in dataset.arrays.values()] == ["<f8", "<f4", "<i8", "|b1"]
    assert dataset.bars_per_year == 365 * 288
    assert dataset.label.startswith("SYNTHETIC 5m, 2 coins, 300 bars, 1 segment, ")


def test_the_hash_follows_every_number_and_name(dataset):
    changes = [
        {"price": poke(dataset.price, (7, 1), 1.0)},
        {"tech": poke(dataset.tech, (7, 1), 1.0)},
        {"time": dataset.time + 300},
        {"tickers": ("BTC", "SHIB")},
        {"feature_names": dataset.feature_names[::-1]},
        {"segments": ((0, 299),)},
        {"filled": poke(dataset.filled, (7, 1), True)},
        {"feature_set": "host"},
        {"warmup_bars": dataset.warmup_bars + 1},
        {"venue": replace(dataset.venue, as_of="2025-01-01")},
        {"venue": replace(dataset.venue, rules={"BTC": OrderRule(2e-5)})},
        {"venue": replace(dataset.venue, fee_tiers=ALPACA.fee_tiers[:1])},
        {"synthetic": False},
        {"source": "an exchange"},
        {"quality": {"max_fill_bars": 3}},
        {"quality": {"max_fill_bars": 4}},
    ]
    hashes = {make_dataset(**parts(dataset, **change)).sha256 for change in [{}, *changes]}
    assert len(hashes) == len(changes) + 1
    assert make_dataset(**parts(dataset)).sha256 == dataset.sha256


def test_one_number_of_the_quality_report_cannot_be_edited(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["quality"]["tickers"]["BTC"]["gaps"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="it does not match its hash"):
        load_dataset(folder)


def test_writes_to_a_mapped_array_never_reach_the_file(folder):
    first = load_dataset(folder)
    first.price[0, 0] = 123.0
    assert load_dataset(folder).price[0, 0] != 123.0


# ---------------------------------------------------------------------------------------------- env_config


def test_the_environment_gets_arrays_segments_and_rules_by_name(dataset):
    config = dataset.env_config()
    assert config["price_array"] is dataset.price
    assert config["tech_array"] is dataset.tech
    assert config["segments"] == ((0, 300),)
    assert config["min_order_qty"].tolist() == [1.7e-05, 132000.0]
    assert dataset.env_config([(3, 50), (60, 300)])["segments"] == ((3, 50), (60, 300))


def test_the_rules_in_a_dataset_are_those_it_was_made_with(dataset, tmp_path):
    own = replace(
        ALPACA, name="elsewhere", as_of="2025-02-03", rules={"PEPE": OrderRule(7.0, 0.5), "SOL": OrderRule(1)}
    )
    made = make_dataset(**parts(dataset, venue=own))
    save_dataset(made, tmp_path / "d")
    for again in (made, load_dataset(tmp_path / "d"), made.with_rows(0, 100)):
        assert again.venue.label == "elsewhere of 2025-02-03"
        assert list(again.venue.rules) == ["PEPE"]
        assert again.env_config()["min_order_qty"].tolist() == [0.0, 7.0]
        assert again.env_config()["qty_increment"].tolist() == [1e-9, 0.5]
    assert make_dataset(**{k: v for k, v in parts(dataset).items() if k != "venue"}).venue == ALPACA.only(
        dataset.tickers
    )


def test_choosing_coins_chooses_their_rules(dataset):
    chosen = dataset.with_tickers(["PEPE"])
    assert list(chosen.venue.rules) == ["PEPE"]
    assert chosen.env_config()["min_order_qty"].tolist() == [132000.0]


def test_choosing_coins_takes_their_filled_bars_along(dataset):
    filled = np.zeros(dataset.price.shape, dtype=bool)
    filled[5, 0] = filled[7:9, 1] = True
    marked = replace(dataset, filled=filled)
    swapped = marked.with_tickers(dataset.tickers[::-1])
    np.testing.assert_array_equal(swapped.filled, filled[:, ::-1])
    np.testing.assert_array_equal(swapped.price, dataset.price[:, ::-1])
    for a, ticker in enumerate(dataset.tickers):
        np.testing.assert_array_equal(marked.with_tickers([ticker]).filled, filled[:, [a]])


def test_a_rule_in_the_manifest_cannot_be_edited(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["venue"]["rules"]["BTC"]["min_order_qty"] = 0.0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="it does not match its hash"):
        load_dataset(folder)


@pytest.mark.parametrize("segments", [[(0, 301)], [(-1, 10)], [(5, 5)], [(9, 3)], []])
def test_segments_outside_the_data_are_refused(dataset, segments):
    with pytest.raises(DatasetError, match="segment"):
        dataset.env_config(segments)


def test_no_window_may_cross_a_seam(dataset):
    split = make_dataset(**parts(dataset, segments=((0, 100), (100, 300))))
    with pytest.raises(DatasetError, match=r"\(90, 110\)"):
        split.env_config([(90, 110)])


# ---------------------------------------------------------------------------------------------- bad contents


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda d: {"price": poke(d.price, (7, 1), np.nan)}, "price_array of PEPE at bar 7 is nan"),
        (lambda d: {"price": poke(d.price, (7, 0), np.inf)}, "price_array of BTC at bar 7 is inf"),
        (lambda d: {"price": poke(d.price, (7, 0), 0.0)}, "BTC at bar 7 is 0.0, expected a positive number"),
        (lambda d: {"price": poke(d.price, (7, 0), -1.0)}, "BTC at bar 7 is -1.0"),
        (lambda d: {"price": d.price.T}, "transposed"),
        (lambda d: {"price": d.price[:, 0]}, "expected 2 dimensions"),
        (lambda d: {"price": d.price[:-1]}, r"\(299, 2\), expected \(300, 2\)"),
        (lambda d: {"price": d.price.astype(np.float32)}, "dtype float32, expected float64"),
        (lambda d: {"price": d.price.astype(np.int64)}, "dtype int64"),
        (lambda d: {"price": d.price.astype(str)}, "dtype <U"),
        (lambda d: {"price": d.price.astype(object)}, "dtype object"),
        (lambda d: {"tech": poke(d.tech, (9, 3), np.nan)}, "tech_array BTC:volatility at bar 9 is nan"),
        (lambda d: {"tech": poke(d.tech, (9, 3), -np.inf)}, "BTC:volatility at bar 9 is -inf"),
        (lambda d: {"tech": d.tech.astype(np.float64)}, "tech_array has dtype float64"),
        (lambda d: {"tech": d.tech[:, :-1]}, "bars x features"),
        (lambda d: {"tech": d.tech.T.copy()}, "transposed"),
        (lambda d: {"tech": d.tech[:, 0].copy()}, "tech_array has shape .* expected 2 dimensions"),
        (lambda d: {"tech": d.tech.astype(object)}, "tech_array has dtype object"),
        (lambda d: {"tech": d.tech.astype(str)}, "tech_array has dtype <U"),
        (lambda d: {"time": d.time[:, None]}, "time_array has shape .* expected 1 dimensions"),
        (lambda d: {"time": d.time // 60}, "time_array at bar 0 is .*, expected UTC seconds"),
        (lambda d: {"time": d.time * 1_000}, "expected UTC seconds"),
        (lambda d: {"time": d.time[::-1].copy()}, "goes back at bar 1 "),
        (lambda d: {"time": poke(d.time, 5, d.time[4])}, "repeats at bar 5 "),
        (lambda d: {"time": poke(d.time, 5, d.time[5] + 60)}, "steps 360 s at bar 5 "),
        (lambda d: {"time": d.time + 300 * (np.arange(300) >= 50)}, "steps 600 s at bar 50 .* split the segment"),
        (lambda d: {"time": d.time.astype(np.float64)}, "time_array has dtype float64"),
        (lambda d: {"filled": d.filled[:, :1]}, r"filled_array is \(300, 1\), expected \(300, 2\)"),
        (lambda d: {"filled": d.filled.astype(np.int8)}, "filled_array has dtype int8, expected bool"),
        (lambda d: {"warmup_bars": -1}, "warmup_bars is -1"),
        (lambda d: {"segments": ()}, "no segments"),
        (lambda d: {"segments": ((0, 200), (150, 300))}, "overlap"),
        (lambda d: {"segments": ((150, 300), (0, 150))}, "out of order"),
        (lambda d: {"segments": ((0, 301),)}, "exceed the 300 bars"),
        (lambda d: {"segments": ((0, 31),)}, "has 31 bars, at least 32 are required"),
        (lambda d: {"tickers": ("BTC", "BTC")}, "ticker BTC is repeated"),
        (lambda d: {"tickers": ()}, "no ticker names"),
        (lambda d: {"bar_seconds": 0}, "bar_seconds is 0"),
    ],
)
def test_contents_a_simulator_could_misread_are_refused(dataset, tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message) as caught:
        make_dataset(**parts(dataset, **changes(dataset)))
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match=message):
        save_dataset(replace(dataset, **changes(dataset)), tmp_path / "bad")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- bad files


def npy_header(shape, descr="<f8"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


class Bomb:
    """Pickles to a program that would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def object_array_bytes(path):
    out = io.BytesIO()
    np.save(out, np.array([Bomb(path)], dtype=object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in ARRAYS), "manifest.json"])
@pytest.mark.parametrize("damage", ["absent", "empty", "garbage", "truncated", "longer", "bit flip", "folder"])
def test_every_damaged_file_is_refused_by_name(folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    made = {"empty": b"", "garbage": b"\x00garbage" * 50, "truncated": content[:-5], "longer": content + b"!"}
    if damage == "folder":
        path.mkdir()
    elif damage != "absent":
        path.write_bytes((made | {"bit flip": flipped})[damage])
    with pytest.raises(DatasetError) as caught:
        load_dataset(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    if damage != "bit flip":
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_header((10**12, 7)), "requires 56000000000128 bytes"),
        (npy_header((2**62, 2**62)), "the file has 128"),
        (npy_header((-1, 7)) + b"0" * 56, "the file has 184"),
        (npy_header((0, 7)), "shape .* requires"),
        (npy_header((2,), "|O") + b"0" * 16, "Python objects, which are never loaded"),
        (npy_header((2,), "nonsense"), "not an .npy file, or its header is damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "not an .npy file, or its header is damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')\n", "not an .npy file, or its header is damaged"),
        (pickle.dumps([1, 2]), "not an .npy file, or its header is damaged"),
    ],
)
def test_a_lying_header_is_refused_before_anything_is_allocated(tmp_path, content, message):
    (tmp_path / "price_array.npy").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_array(tmp_path / "price_array.npy", mmap=False)


def one_bit_flips(content, n_bytes):
    """The content once for every bit of its first bytes, with that bit the other way."""
    for place, bit in product(range(n_bytes), range(8)):
        yield content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", ["price_array", "filled_array"])
def test_every_flipped_bit_of_a_header_and_every_missing_end_is_refused(dataset, tmp_path, name, mmap):
    array, path = dataset.arrays[name], tmp_path / "a.npy"
    np.save(path, array)
    content = path.read_bytes()
    truncated = [content[:n_bytes] for n_bytes in (*range(200), len(content) - 8, len(content) - 1)]
    for damaged in (*one_bit_flips(content, 128), *truncated):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"^[^\n]*a\.npy: [^\n]*$"):
            read_array(path, mmap)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False}",
        "{'descr': '<f8', 'shape': (2,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), 'more': 1, }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2.0,), }",
        "{'descr': '<f8', 'fortran_order': 1, 'shape': (2,), }",
        "{'descr': '>f8', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': 2, }",
        f"{{'descr': '<f8', 'fortran_order': False, 'shape': {(1,) * 65 + (2,)}, }}",
        "[" * 3_000 + "]" * 3_000,
        "-" * 4_000 + "1",
    ],
)
def test_a_header_that_numpy_does_not_write_is_refused(tmp_path, header):
    text = (header + "\n").encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(16))
    with pytest.raises(DatasetError, match=r"a\.npy: not an \.npy file, or its header is damaged"):
        read_array(tmp_path / "a.npy", mmap=False)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (3, 1, 2)])
def test_an_array_comes_back_in_the_order_it_was_saved_in(tmp_path, shape, order, mmap):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int64).reshape(shape, order=order)
    np.save(tmp_path / "a.npy", array)
    assert read_array(tmp_path / "a.npy", mmap).tolist() == array.tolist()


def test_an_object_array_never_runs_its_code(tmp_path):
    (tmp_path / "a.npy").write_bytes(object_array_bytes(tmp_path / "ran"))
    with pytest.raises(DatasetError, match="Python objects"):
        read_array(tmp_path / "a.npy", mmap=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 1, "of format 1, from an older version"),
        ("format", 2, "of format 2, from an older version"),
        ("format", 4, "not a dataset manifest of format 3"),
        ("tickers", "BTC", "field tickers"),
        ("tickers", ["BTC", 3], r"field tickers\[1\]: expected str"),
        ("segments", [[0, 1, 2]], r"field segments\[0\]: expected array of length 2"),
        ("segments", [[0, 1.5]], r"field segments\[0\]\[1\]: expected int"),
        ("bar_seconds", "300", "field bar_seconds"),
        ("kind", "imaginary", "field kind: invalid enum value 'imaginary'"),
        ("kind", "real", "does not match its hash"),
        ("source", "an exchange", "does not match its hash"),
        ("quality", {}, "does not match its hash"),
        ("first_close", "2020-01-01 00:00", "does not match its hash"),
        ("bars", 7, "does not match its hash"),
        ("note", "checked by hand", "field note is unknown"),
        ("tickers", ["PEPE", "BTC"], "does not match its hash"),
        ("bar_seconds", 60, "steps 300 s at bar 1"),
        ("sha256", None, "field sha256"),
        ("venue", None, "field venue: not a table of venue rules"),
        ("venue", {"format": 1}, "field venue: venue: field name is missing"),
        ("arrays", {}, "does not match its hash in the manifest"),
    ],
)
def test_an_edited_manifest_is_refused(folder, field, value, message):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(DatasetError, match=message):
        load_dataset(folder)


def test_arrays_of_another_dataset_are_refused(dataset, folder, tmp_path):
    save_dataset(make_dataset(**parts(dataset, price=dataset.price * 2)), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "price_array.npy", folder)
    with pytest.raises(DatasetError, match=r"price_array\.npy: content does not match its hash"):
        load_dataset(folder)


def test_an_absent_folder_says_how_to_build_one(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere: no such dataset folder; build one with scripts/data"):
        load_dataset(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------- whole or not at all


def test_only_a_dataset_is_replaced_and_only_when_asked(dataset, folder):
    with pytest.raises(DatasetError, match="pass --overwrite"):
        save_dataset(dataset, folder)
    other = make_dataset(**parts(dataset, price=dataset.price * 2))
    save_dataset(other, folder, overwrite=True)
    assert load_dataset(folder).sha256 == other.sha256
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"diary\.txt, which is not part of a dataset"):
        save_dataset(dataset, folder, overwrite=True)
    assert load_dataset(folder).sha256 == other.sha256
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["5m"]


def test_the_picture_comes_and_goes_with_the_folder_and_is_no_part_of_the_dataset(dataset, tmp_path):
    folder = tmp_path / "5m"
    save_dataset(dataset, folder, picture=b"picture")
    assert (folder / "quality.png").read_bytes() == b"picture"
    assert load_dataset(folder).sha256 == dataset.sha256
    (folder / "quality.png").write_bytes(b"scribbled on")
    assert load_dataset(folder).sha256 == dataset.sha256
    save_dataset(load_dataset(folder, mmap=False), folder, overwrite=True)
    assert sorted(entry.name for entry in folder.iterdir()) == sorted([*(f"{n}.npy" for n in ARRAYS), "manifest.json"])
    save_dataset(load_dataset(folder, mmap=False), folder, overwrite=True, picture=b"another")
    assert (folder / "quality.png").read_bytes() == b"another"


def test_a_file_or_a_link_in_the_way_is_left_alone(dataset, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(DatasetError, match="choose a different folder"):
            save_dataset(dataset, tmp_path / name, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_replacing_works_where_folders_cannot_be_exchanged(dataset, folder, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    other = make_dataset(**parts(dataset, price=dataset.price * 2))
    save_dataset(other, folder, overwrite=True)
    assert load_dataset(folder).sha256 == other.sha256
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["5m"]


KILL = """
import sys
sys.path.insert(0, {root!r})
from market.dataset import load_dataset, make_dataset, save_dataset
from market.sample import synthetic_dataset
import os
left = int(sys.argv[2])
def count(event, arguments):
    global left
    if event in ("open", "os.rename", "os.mkdir", "ctypes.dlsym") and armed:
        left -= 1
        if left < 0:
            os._exit(9)
armed = False
sys.addaudithook(count)
data = synthetic_dataset("5m", 300, ("BTC", "PEPE"), seed=2)
armed = True
save_dataset(data, sys.argv[1], overwrite=True)
"""


@pytest.mark.parametrize("n_events", [1, 5, 8, 9, 10, 11, 12])
def test_a_kill_at_any_moment_leaves_the_old_dataset_or_the_new_one(dataset, folder, n_events):
    root = os.path.dirname(os.path.dirname(dataset_module.__file__))
    script = [sys.executable, "-c", KILL.format(root=root), str(folder), str(n_events)]
    done = subprocess.run(script, check=False, timeout=60)
    assert done.returncode == (9 if n_events < 12 else 0)
    # Loading checks the hash, so what is there is one whole dataset.
    assert (load_dataset(folder).sha256 == dataset.sha256) == (n_events < 10)


def test_a_full_disk_leaves_the_old_dataset_and_no_rubbish(dataset, folder, monkeypatch):
    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset_module, "sync_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_dataset(make_dataset(**parts(dataset, price=dataset.price * 2)), folder, overwrite=True)
    assert load_dataset(folder).sha256 == dataset.sha256
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["5m"]


# ---------------------------------------------------------------------------------------------- the hosts' pickles


def test_an_array_pickled_by_an_older_numpy_is_read(tmp_path):
    content = pickle.dumps(np.arange(6.0).reshape(2, 3), protocol=2).replace(b"numpy._core", b"numpy.core")
    (tmp_path / "a").write_bytes(content)
    assert load_host_array(tmp_path / "a").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_never_runs(tmp_path, protocol):
    for content in (Bomb(tmp_path / "ran"), [Bomb(tmp_path / "ran")], np.array([Bomb(tmp_path / "ran")], dtype=object)):
        (tmp_path / "a").write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(DatasetError, match="rejected"):
            load_host_array(tmp_path / "a")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"cnumpy\nndarray\n(I1000000000000\ntR.",
        b"cnumpy._core.multiarray\n_reconstruct\n(I1\ntR.",
        pickle.dumps({"price": 1.0}),
        pickle.dumps(np.array(["a", "b"])),
        pickle.dumps(np.zeros(100))[:-40],
    ],
)
def test_what_is_not_a_numeric_array_is_refused_by_name(tmp_path, content):
    (tmp_path / "price_array").write_bytes(content)
    with pytest.raises(DatasetError, match="price_array"):
        load_host_array(tmp_path / "price_array")
