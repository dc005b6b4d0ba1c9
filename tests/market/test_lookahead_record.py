"""The check of a dataset's features while its bars are at hand, and the record of it in the manifest."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from msgspec import structs

from barwise.commands import build_dataset, find_lookahead, import_host_data, inspect_dataset, make_sample
from market import features, lookahead_record
from market.bars.candles import write_bars
from market.build import dataset_from_bars
from market.dataset import load_dataset, make_dataset, save_dataset, with_declaration, write_record
from market.errors import BarsError, DatasetError
from market.features import Feature
from market.indicators import rsi
from market.lookahead import checked
from market.lookahead_record import CLEAN, FOUND, UNCHECKED, UNEXPLAINED, LookaheadRecord, standing
from market.sample import sample_bars
from tests.support.lookahead_cases import as_checked, leaks


@pytest.fixture(autouse=True)
def short_data_is_enough(monkeypatch):
    """Bars ahead that columns must be compared with: data sets here are short."""
    monkeypatch.setattr(lookahead_record, "LEAST_LAGS", 0)


COINS = ("BTC", "ETH")


@pytest.fixture(scope="module")
def bars():
    return sample_bars("5m", 900, COINS, seed=2)


@pytest.fixture
def bars_file(tmp_path, bars):
    write_bars(bars, tmp_path / "bars.csv")
    return tmp_path / "bars.csv"


def built(bars, **options):
    return dataset_from_bars(bars, COINS, options.pop("timeframe", "5m"), source="bars.csv", **options)


def build(bars_file, *words):
    """The dataset of build_dataset.py."""
    folder = bars_file.parent / "5m"
    words = ("--bars", bars_file, "--tickers", *COINS, "--timeframe", "5m", "--out", folder, *words)
    assert build_dataset.main([str(word) for word in words]) == 0
    return load_dataset(folder), folder


def looks_ahead(monkeypatch, n_bars=48):
    """One indicator of the default set reads later bars."""

    def early(coin):
        return np.concatenate([rsi(coin)[n_bars:], rsi(coin)[-n_bars:]])

    monkeypatch.setitem(features.DEFAULT, "rsi_14", Feature(early, spread=0.25))


# ------------------------------------------------------------------------------------------------- the check at build
def test_a_build_leaves_a_record_that_is_in_no_hash_of_the_dataset(bars, bars_file, capsys):
    dataset, _ = build(bars_file)
    record = dataset.record
    assert dataset.standing.kind == CLEAN
    assert (record.cuts, record.finding) == (8, "")
    assert record.rows_compared > 0
    assert f"look-ahead: clean; features rebuilt from bars {record.bars_sha256[:12]}, 8 cuts" in capsys.readouterr().out
    assert dataset.sha256 == built(bars).sha256  # without a check


@pytest.mark.parametrize("n_bars", [1, 48])
def test_an_indicator_that_looks_ahead_is_caught_at_build(bars_file, monkeypatch, capsys, n_bars):
    looks_ahead(monkeypatch, n_bars)
    dataset, folder = build(bars_file)
    assert dataset.standing.kind == FOUND
    assert "feature BTC:rsi_14 is" in dataset.record.finding
    assert "look-ahead: found; bar 2024-01-0" in capsys.readouterr().out
    assert inspect_dataset.main([str(folder), "--no-picture"]) == 0
    assert "look-ahead: found; bar 2024-01-0" in capsys.readouterr().out


def test_too_few_bars_for_a_cut_are_said_and_the_dataset_is_written(tmp_path, capsys):
    write_bars(sample_bars("5m", 256 + 32, COINS, seed=2), tmp_path / "bars.csv")
    dataset, _ = build(tmp_path / "bars.csv")
    assert dataset.standing.kind == UNCHECKED
    assert "look-ahead: not checked (no bar is later than" in capsys.readouterr().out


def test_the_check_takes_a_minute_at_most(bars, monkeypatch):
    counts = []
    _, report = checked(built(bars), bars, most_seconds=1e-6, on_run=counts.append)
    assert (len(report.cuts), counts) == (1, [3, 3, 3])


# ------------------------------------------------------------------------------- bars and datasets of every description
@pytest.mark.parametrize(
    ("make", "options"),
    [
        ("5m", {"start": datetime(2024, 1, 1, 10, tzinfo=UTC), "end": datetime(2024, 1, 3, 20, tzinfo=UTC)}),
        ("5m", {"timeframe": "15m", "max_fill_bars": 1}),
        ("5m", {"features": "host"}),
        ("1h", {"timeframe": "1d", "offset_s": 57_600}),
    ],
)
def test_a_dataset_says_how_it_is_built_again(make, options):
    n_bars = 8_000 if make == "1h" else 2_000
    bars = sample_bars(make, n_bars, COINS, seed=3).drop(index=[1_500, 1_501, 1_700]).reset_index(drop=True)
    dataset, report = checked(built(bars, **options), bars, n_cuts=3)
    assert (dataset.standing.kind, report.differences) == (CLEAN, ())


def test_other_bars_are_refused(bars):
    later = bars.index % 900 >= 600
    with pytest.raises(DatasetError, match=r"a different dataset \(feature BTC:range_breakout differs at 2024-01-0"):
        checked(built(bars), bars.assign(volume=bars["volume"].where(~later, 5.0)))
    with pytest.raises(DatasetError, match=r"a different dataset \(row differs at 2024-01-0"):
        checked(built(bars), bars.loc[bars.index % 900 < 880])
    with pytest.raises(DatasetError, match="these bars make no dataset"):
        checked(built(bars), bars.assign(timestamp=bars["timestamp"] + pd.Timedelta(days=400)))
    with pytest.raises(BarsError, match="unknown ticker"):
        checked(built(bars), sample_bars("5m", 900, ("BTC",), seed=2))


def test_columns_of_others_cannot_be_made_again(bars):
    dataset = replace(built(bars), feature_set="given")
    with pytest.raises(DatasetError, match="this program did not compute its columns from bars"):
        checked(dataset, bars)


# ----------------------------------------------------------------------------------------------------- the manifest
def edited(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("field", "value"),
    [("finding", ""), ("cuts", 99), ("bars_sha256", "0" * 64), ("suspects", {}), ("dataset_sha256", "0" * 64),
     ("declared", [{"columns": ["BTC:rsi_14"], "by": "x", "why": "y"}])],
)  # fmt: skip
def test_an_edited_record_is_refused(tmp_path, bars, field, value):
    save_dataset(as_checked(built(bars), finding="bar 5: feature x is 1 and 2"), tmp_path / "5m")
    assert load_dataset(tmp_path / "5m").standing.kind == FOUND
    edited(tmp_path / "5m", lambda manifest: manifest["lookahead"].update({field: value}))
    with pytest.raises(DatasetError, match="field lookahead was edited or belongs to a different dataset"):
        load_dataset(tmp_path / "5m")


def test_a_record_of_another_dataset_is_refused(tmp_path, bars):
    dataset, other = as_checked(built(bars)), built(bars, features="host")
    save_dataset(other, tmp_path / "5m")
    with pytest.raises(DatasetError, match="belongs to a different dataset"):
        write_record(tmp_path / "5m", dataset.record)
    edited(tmp_path / "5m", lambda manifest: manifest.update(lookahead=as_manifest(tmp_path, dataset)))
    with pytest.raises(DatasetError, match="belongs to a different dataset"):
        load_dataset(tmp_path / "5m")


def as_manifest(tmp_path, dataset):
    save_dataset(dataset, tmp_path / "with a record")
    return json.loads((tmp_path / "with a record" / "manifest.json").read_text())["lookahead"]


def test_a_dataset_from_before_the_check_keeps_its_hash_and_is_not_checked(tmp_path, bars):
    dataset = built(bars)
    save_dataset(dataset, tmp_path / "5m")
    edited(tmp_path / "5m", lambda manifest: manifest.pop("lookahead"))
    old = load_dataset(tmp_path / "5m")
    assert (old.sha256, old.lookahead) == (dataset.sha256, None)
    assert old.standing.line.startswith("look-ahead: not checked; features were not rebuilt from cut bars; run ")


def test_rows_and_coins_of_a_checked_dataset_are_checked_but_not_on_disk(tmp_path, bars):
    part = as_checked(built(bars)).with_tickers(("ETH",)).with_rows(0, 300)
    assert part.standing.kind == CLEAN
    save_dataset(part, tmp_path / "5m")  # a dataset of its own, of which the record says nothing
    assert load_dataset(tmp_path / "5m").standing.kind == UNCHECKED


# ----------------------------------------------------------------------------------------------------- the commands
def lookahead(*words):
    return find_lookahead.main([str(word) for word in words])


def test_an_old_dataset_is_checked_again_with_its_bars(tmp_path, bars, bars_file, capsys):
    save_dataset(built(bars), tmp_path / "5m")
    assert lookahead("--bars", bars_file, "--record", tmp_path / "5m", "--cuts", 3) == 0
    assert "5m: look-ahead: clean; features rebuilt" in capsys.readouterr().out
    dataset = load_dataset(tmp_path / "5m")
    assert (dataset.record.cuts, dataset.sha256) == (3, built(bars).sha256)


def test_an_old_dataset_that_looks_ahead_is_found_with_its_bars(tmp_path, bars, bars_file, monkeypatch, capsys):
    looks_ahead(monkeypatch)
    save_dataset(built(bars), tmp_path / "5m")
    assert lookahead("--bars", bars_file, "--record", tmp_path / "5m", "--cuts", 3) == 1
    assert capsys.readouterr().out.startswith("LOOK-AHEAD FOUND: bar 2024-01-0")
    assert load_dataset(tmp_path / "5m").standing.kind == FOUND


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bars", "x", "--record", "y", "--timeframe", "5m"], "--timeframe does not apply to --record"),
        (["--data-dir", "x", "--record", "y"], "--record does not apply to --data-dir"),
        (["--data-dir", "x", "--declare", "BTC:a"], "must be given together"),
        (["--bars", "x", "--declare", "BTC:a"], "--declare does not apply to --bars"),
    ],
)
def test_flags_that_do_not_belong_together(words, message, capsys):
    with pytest.raises(SystemExit):
        lookahead(*words)
    assert message in capsys.readouterr().err


@pytest.fixture
def host_folder(tmp_path, bars):
    """A host's pickles with one column that is the return of the next 48 bars."""
    dataset = built(sample_bars("5m", 3_000, COINS, seed=2))
    folder = tmp_path / "host"
    folder.mkdir()
    tech = dataset.tech[:, :30].astype(np.float64)
    tech[:, 20] = leaks(dataset.price[:, 1], 48)["return"]
    for name, array in {"price_array": dataset.price, "tech_array": tech, "time_array": dataset.time - 300}.items():
        array.dump(folder / name)
    return folder


def test_an_imported_column_that_knows_the_future_is_unexplained_until_it_is_declared(tmp_path, host_folder, capsys):
    words = (
        "--host-folder",
        host_folder,
        "--tickers",
        *COINS,
        "--timeframe",
        "5m",
        "--synthetic",
        "--out",
        tmp_path / "5m",
    )
    assert import_host_data.main([str(word) for word in words]) == 0
    assert (
        "look-ahead: unexplained; ETH:column_5 correlates with the return of ETH 48 bars later"
        in capsys.readouterr().out
    )
    dataset = load_dataset(tmp_path / "5m")
    assert (dataset.standing.kind, list(dataset.record.suspects)) == (UNEXPLAINED, ["ETH:column_5"])
    assert dataset.with_tickers(("BTC",)).standing.kind == CLEAN  # the column is not among its own
    assert lookahead("--data-dir", tmp_path / "5m", "--steps", 30, "--cuts", 1) == 1
    assert capsys.readouterr().out.startswith("LOOK-AHEAD FOUND: feature ETH:column_5 correlates with")

    declare = ("--data-dir", tmp_path / "5m", "--by", "A. Owner", "--why", "an auction's known price", "--declare")
    assert lookahead(*declare, "ETH:column_6") == 0  # another column
    assert load_dataset(tmp_path / "5m").standing.kind == UNEXPLAINED
    assert lookahead(*declare, "ETH:column_5") == 0
    declared = load_dataset(tmp_path / "5m")
    assert declared.standing.kind == CLEAN
    assert "1 suspicious" in declared.standing.text
    assert "declared by A. Owner: an auction's known price" in declared.standing.text
    assert declared.sha256 == dataset.sha256
    capsys.readouterr()
    assert lookahead("--data-dir", tmp_path / "5m", "--steps", 30, "--cuts", 1) == 0


def test_a_declaration_names_columns_and_gives_a_name_and_a_reason(tmp_path, bars, capsys):
    dataset = built(bars)
    save_dataset(dataset, tmp_path / "5m")
    words = ("--data-dir", tmp_path / "5m", "--by", "me", "--why", "so", "--declare", "BTC:absent")
    assert lookahead(*words) == 2
    assert "--declare BTC:absent: no such column" in capsys.readouterr().err
    for by, why in (("me", " "), ("", "so")):
        with pytest.raises(DatasetError, match="requires --by NAME and --why TEXT"):
            with_declaration(dataset, ["BTC:rsi_14"], by, why)


@pytest.mark.parametrize("words", [(), ("--no-signal",)])
def test_a_sample_market_is_checked_and_its_signal_is_declared(tmp_path, words):
    words = ("--tickers", *COINS, "--timeframe", "5m", "--n-bars", "600", "--out", str(tmp_path / "5m"), *words)
    assert make_sample.main(list(words)) == 0
    dataset = load_dataset(tmp_path / "5m")
    assert (dataset.standing.kind, dataset.record.cuts) == (CLEAN, 8)
    has_signal = "--no-signal" not in words
    assert ("declared by make_sample.py: the market carries a planted signal" in dataset.standing.text) == has_signal
    assert dataset.record.declared_columns == (set(dataset.feature_names) if has_signal else set())


def test_columns_made_by_hand_are_not_checked_until_they_are_compared(bars):
    dataset = built(bars)
    names = ("tickers", "price", "tech", "time", "feature_names", "bar_seconds", "segments", "source", "synthetic")
    by_hand = make_dataset(**{name: getattr(dataset, name) for name in names})
    assert by_hand.standing.line == "look-ahead: not checked; columns were not compared with later bars"


def test_data_that_is_too_short_for_the_longest_lag_is_not_called_clean(monkeypatch):
    monkeypatch.undo()
    names = ("BTC:x",)
    record = LookaheadRecord(dataset_sha256="a", suspects={}, lags=500)
    assert standing(record, "imported", names).kind == UNCHECKED
    assert standing(structs.replace(record, lags=2_048), "imported", names).kind == CLEAN


def test_other_cuts_do_not_take_a_finding_away():
    bars = sample_bars("5m", 900, ("BTC", "ETH"), seed=0)
    dataset = dataset_from_bars(bars, ("BTC", "ETH"), "5m", source="t")
    found = replace(dataset, lookahead=structs.replace(dataset.record, finding="a leak").sealed())
    assert checked(found, bars, n_cuts=1)[0].standing.kind == FOUND
