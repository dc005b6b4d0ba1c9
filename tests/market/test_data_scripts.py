"""The data scripts as their user runs them: another working directory, blanks in paths, wrong values."""

import pickle
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from market.bars.candles import write_bars
from market.dataset import load_dataset, save_dataset
from market.pictures import quality_picture
from market.planted import Law
from market.sample import sample_bars, synthetic_dataset

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "data"


def run(name, *arguments, cwd):
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def exit_code_of(name, arguments):
    """In this process, where the exit code of argparse is an exception."""
    try:
        return import_module(f"barwise.commands.{name}").main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    return folder


def test_a_file_of_bars_becomes_a_dataset(bars, folder):
    write_bars(bars.drop(columns="synthetic"), folder / "bars.csv")
    done = run("build_dataset", "--bars", "bars.csv", "--tickers", "BTC/USDT,ETH", "--out", "data/5m", cwd=folder)
    assert done.returncode == 0, done.stderr
    dataset = load_dataset(folder / "data" / "5m")
    assert dataset.tickers == ("BTC", "ETH")
    assert not dataset.synthetic
    assert dataset.source == "bars.csv"
    assert "REAL 5m, 2 coins, 344 bars" in done.stdout
    again = run("build_dataset", "--bars", "bars.csv", "--tickers", "BTC", "--out", "data/5m", cwd=folder)
    assert again.returncode == 2
    assert "pass --overwrite" in again.stderr
    assert load_dataset(folder / "data" / "5m").sha256 == dataset.sha256


@pytest.mark.parametrize("name", ["b.csv", "b.parquet"])
def test_the_sample_and_its_bars_become_datasets_that_say_they_are_synthetic(folder, name):
    done = run(
        "make_sample", "--n-bars", 200, "--tickers", "BTC", "ETH", "--bars", name, "--out", "x/1h",
        "--timeframe", "1h", "--seed", 7, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    dataset = load_dataset(folder / "x" / "1h")
    assert dataset.synthetic
    assert len(dataset.time) == 200
    assert "SYNTHETIC, planted signal, 1h" in done.stdout
    built = run(
        "build_dataset", "--bars", name, "--tickers", "BTC", "ETH", "--timeframe", "1h", "--out", "y", cwd=folder
    )
    assert built.returncode == 0, built.stderr
    assert "SYNTHETIC 1h" in built.stdout
    again = load_dataset(folder / "y")
    assert again.synthetic
    for array, expected in zip(again.arrays.values(), dataset.arrays.values(), strict=True):
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("flags", "law"), [([], "planted signal"), (["--no-signal"], "no signal")])
def test_the_sample_says_whether_it_carries_a_signal(folder, flags, law):
    done = run("make_sample", "--n-bars", 200, "--tickers", "BTC", "--out", "5m", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    dataset = load_dataset(folder / "5m")
    assert f"SYNTHETIC, {law}, 5m, 1 coin" in done.stdout
    assert dataset.source == f"sample market, {law}, seed 8, 456 bars"
    assert dataset.sha256 == synthetic_dataset("5m", 200, ("BTC",), seed=8, law=Law(law)).sha256


def test_a_coin_in_another_currency_is_said_to_have_no_rule(bars, folder):
    euros = bars.drop(columns="synthetic").assign(symbol=bars["symbol"].astype(str).str.replace("USD", "EUR"))
    write_bars(euros, folder / "bars.csv")
    done = run("build_dataset", "--bars", "bars.csv", "--tickers", "BTC/EUR", "ETH/EUR", "--out", "o", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "no entry for BTC/EUR, ETH/EUR: no minimum order; scripts/data/refresh_venues.py" in done.stdout
    dataset = load_dataset(folder / "o")
    assert dataset.venue.order_rules(dataset.tickers).min_order_notional == 0.0


def test_real_bars_can_be_called_synthetic(bars, folder):
    write_bars(bars.drop(columns="synthetic"), folder / "bars.csv")
    arguments = ["--bars", "bars.csv", "--tickers", "BTC", "--out", "o", "--synthetic"]
    assert run("build_dataset", *arguments, cwd=folder).returncode == 0
    assert load_dataset(folder / "o").synthetic


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("build_dataset", ["--bars", "no.csv", "--out", "o"], "no.csv: no such file"),
        ("build_dataset", ["--bars", "b.csv", "--out", "o", "--tickers", "BTC", "XYZ"], "unknown ticker XYZ"),
        ("build_dataset", ["--bars", "b.csv", "--out", "o", "--tickers", "BTC", "BTCUSD"], "BTC given more than once"),
        ("build_dataset", ["--bars", "b.csv", "--out", "b.csv", "--tickers", "BTC"], "is a link or a file"),
        ("build_dataset", ["--bars", "b.csv", "--out", "o", "--timeframe", "7m"], "--timeframe: invalid choice: '7m'"),
        ("build_dataset", ["--bars", "b.csv", "--out", "o", "--start", "soon"], "--start: 'soon' is not an ISO date"),
        ("build_dataset", ["--bars", "b.csv", "--out", "o", "--max-fill-bars", "-1"], "--max-fill-bars: '-1'"),
        (
            "build_dataset",
            ["--bars", "b.csv", "--out", "/dev/null/o", "--tickers", "BTC"],
            "build_dataset.py: /dev/null",
        ),
        ("make_sample", ["--out", "o", "--n-bars", "3"], "--n-bars: '3' is not an integer of at least 32"),
        ("make_sample", ["--out", "o", "--bars", "b.txt", "--n-bars", "50"], "b.txt"),
        ("download_bars", ["--out", "o.txt"], "--out o.txt: the file name must end in .parquet or .csv"),
        ("download_bars", ["--out", "b.csv"], "pass --overwrite"),
        ("download_bars", ["--out", "o.csv", "--source", "cnn"], "--source: invalid choice: 'cnn'"),
        ("download_bars", ["--out", "o.csv", "--start", "2024-02-01", "--end", "2024-01-01"], "must be before end"),
    ],
)
def test_a_bad_value_is_refused_by_name_before_anything_is_written(
    folder, name, arguments, message, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    write_bars(sample_bars("5m", 400, ("BTC",)), folder / "b.csv")
    before = (folder / "b.csv").read_bytes()
    assert exit_code_of(name, arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1 or error.startswith("usage: ")
    assert [entry.name for entry in folder.iterdir()] == ["b.csv"]
    assert (folder / "b.csv").read_bytes() == before


def test_real_bars_of_seven_coins_become_a_dataset(real_bars_dir, folder):
    bars = real_bars_dir / "crypto_5m_2024-01_2024-08.parquet"
    done = run("build_dataset", "--bars", bars, "--timeframe", "1h", "--out", "data/1h", cwd=folder)
    assert done.returncode == 0, done.stderr
    dataset = load_dataset(folder / "data" / "1h")
    assert dataset.tech.shape == (5_856 - 256, 109)
    assert "REAL 1h, 7 coins" in dataset.label
    shutil.rmtree(folder / "data")


def test_the_real_gappy_file_becomes_segments(real_bars_dir, folder):
    bars = real_bars_dir / "crypto_1m_gappy_coinbase_2018-04.parquet"
    arguments = ["--bars", bars, "--tickers", "BTC/USD", "ETH/USD", "LTC/USD", "--timeframe", "1m", "--out", "o"]
    done = run("build_dataset", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert load_dataset(folder / "o").segments == ((0, 755), (755, 1939))
    assert "longest gaps: BTC 432 bars from 2018-04-04 16:48, LTC 429" in done.stdout


# ---------------------------------------------------------------------------------------------- inspect, import


@pytest.fixture
def built(folder, dataset):
    save_dataset(dataset, folder / "my data" / "5m")
    return folder / "my data" / "5m"


def test_a_dataset_is_printed_and_drawn_beside_its_folder(folder, built, dataset):
    done = run("inspect_dataset", "my data/5m", cwd=folder)
    assert done.returncode == 0, done.stderr
    for part in (dataset.label, dataset.sha256, "bar quality", "segments: 1, 300 bars", "warm-up", "PEPE"):
        assert part in done.stdout
    assert (built.parent / "5m.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in built.parent.iterdir()) == ["5m", "5m.png"]
    assert "quality.png" not in {entry.name for entry in built.iterdir()}
    load_dataset(built)


def test_a_picture_goes_where_it_is_wanted_or_nowhere(folder, built):
    assert run("inspect_dataset", "my data/5m", "--out", "a b.png", cwd=folder).returncode == 0
    assert (folder / "a b.png").is_file()
    assert run("inspect_dataset", ".", "--no-picture", cwd=built).returncode == 0
    assert [entry.name for entry in built.parent.iterdir()] == ["5m"]


def test_the_folder_itself_can_be_the_working_directory(built):
    assert run("inspect_dataset", ".", cwd=built).returncode == 0
    assert (built.parent / "5m.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "inspect_dataset.py: nowhere: no such dataset folder"),
        (["my data/5m", "--out", "x.jpg"], "--out x.jpg: the file name must end in .png"),
        (["my data/5m", "--out", "my data/5m/x.png"], "must be outside the dataset folder"),
        (["my data/5m", "--out", "no/where/x.png"], "--out no/where/x.png: folder no/where does not exist"),
    ],
)
def test_what_cannot_be_inspected_or_drawn_is_one_line(folder, built, arguments, message):
    done = run("inspect_dataset", *arguments, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [entry.name for entry in built.parent.iterdir()] == ["5m"]


@pytest.mark.parametrize("name", ["price_array.npy", "filled_array.npy", "manifest.json"])
def test_a_broken_dataset_is_one_line_and_no_picture(folder, built, name):
    (built / name).write_bytes((built / name).read_bytes()[:-9])
    done = run("inspect_dataset", "my data/5m", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert name in done.stderr
    assert done.stderr.count("\n") == 1
    assert [entry.name for entry in built.parent.iterdir()] == ["5m"]


def test_the_quality_of_real_gaps_is_printed_saved_and_drawn(real_bars_dir, folder):
    bars = real_bars_dir / "crypto_1m_gappy_coinbase_2018-04.parquet"
    done = run("build_dataset", "--bars", bars, "--tickers", "BTC/EUR", "--timeframe", "1m", "--out", "o", cwd=folder)
    assert done.returncode == 0, done.stderr
    dataset = load_dataset(folder / "o")
    found = dataset.quality["tickers"]["BTC/EUR"]
    assert (found["missing_bars"], found["gaps"], found["longest_gap_bars"]) == (657, 156, 431)
    for text in (
        "WARNING BTC/EUR: 657 of 4320 bars are missing (15%)",
        "431",
        "dropped: 0 before",
        "BTC/EUR 8 bars from",
    ):
        assert text in done.stdout
    assert (folder / "o" / "quality.png").read_bytes() == quality_picture(dataset)


@pytest.fixture
def host_folder(folder):
    host = folder / "a host"
    host.mkdir()
    rng = np.random.default_rng(0)
    arrays = {"price_array": np.exp(rng.normal(0, 0.01, (100, 2))), "tech_array": rng.normal(size=(100, 4))}
    arrays["tech_array"][:, 3] = 0.0
    for name, array in (arrays | {"time_array": 1_704_067_200.0 + 300 * np.arange(100)}).items():
        (host / name).write_bytes(pickle.dumps(array))
    return host


def test_a_hosts_folder_becomes_a_dataset(folder, host_folder):
    command = ["--host-folder", "a host", "--timeframe", "5m", "--out", "data/5m_host", "--tickers", "BTC", "ETH"]
    done = run("import_host_data", *command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING 1 of 4 columns are constant and carry no information: ETH:column_1" in done.stdout
    dataset = load_dataset(folder / "data" / "5m_host")
    assert dataset.time[0] == 1_704_067_200 + 300
    assert (folder / "data" / "5m_host" / "quality.png").is_file()
    again = run("import_host_data", *command, cwd=folder)
    assert again.returncode == 2
    assert "pass --overwrite" in again.stderr
    started = run("import_host_data", *command, "--overwrite", "--start", "2024-01-01", cwd=folder)
    assert "WARNING times are counted from --start" in started.stdout


def test_coins_that_do_not_fit_the_hosts_columns_are_refused_with_both_numbers(folder, host_folder):
    command = ["--host-folder", "a host", "--timeframe", "5m", "--out", "o", "--tickers", "BTC", "ETH", "LTC"]
    done = run("import_host_data", *command, cwd=folder)
    assert done.returncode == 2
    assert "has 2 columns, but --tickers names 3 coins" in done.stderr
    assert not (folder / "o").exists()
