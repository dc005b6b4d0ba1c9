"""Every picture names its axes with units, cuts no text off, lays none over another, and has colors all readers see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import calibration_summary, capture_summary, learning, many_workers, memory, scale
from market import pictures
from market.build import dataset_from_bars
from market.sample import sample_bars, synthetic_dataset
from scripts import readme_table
from tests.report.test_band_picture import curves  # noqa: F401  (a fixture)
from tests.report.test_page import page, path_view
from tests.support import fabricated_study as fabricated
from tests.support.looks import closest, faults_of, unnamed_axes
from train.report import charts
from train.report.artifacts import equity_figure
from train.report.band_picture import BAND, band_figure
from train.report.picture import figure_of
from train.study.folds import fold_data
from train.study.split_plan import SplitPlan

COINS = ("AAVE", "ATOM", "AVAX", "BCH", "BTC", "DOGE", "ETC", "ETH", "LINK", "LTC", "MATIC", "NEAR", "OP", "PEPE")
COINS += ("SHIB", "SOL", "UNI", "XRP")
LEAST_DISTANCE = 10.0  # in CIELAB; about 2 is the smallest that is noticed


def assert_looks_right(figure: Figure) -> None:
    assert figure.axes
    assert faults_of(figure) == []
    assert unnamed_axes(figure) == []


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    data = fold_data(synthetic_dataset("5m", 4_000, ("BTC", "ETH", "LTC")), SplitPlan("standard", 3, 2))
    made, folder = fabricated.new_study(tmp_path_factory.mktemp("results"), data)
    for drift in (0.0, 3e-5, -3e-5, 1e-5):
        fabricated.add_complete(made, folder, data, drift)
    return made, folder


def test_the_picture_of_a_study(study):
    assert_looks_right(figure_of(*study))


def test_the_picture_of_a_trial_with_six_splits_and_with_one(study):
    made, folder = study
    attrs = made.get_trials()[1].user_attrs
    assert_looks_right(equity_figure(folder, 1, attrs))
    assert_looks_right(
        equity_figure(folder, 1, {"split_2": attrs["split_2"], "data_label": attrs.get("data_label", "")})
    )


def test_the_picture_of_a_band(curves):  # noqa: F811
    known = replace(curves, best_lo=np.zeros_like(curves.lo), best_hi=np.full_like(curves.hi, 0.5))
    assert_looks_right(band_figure(known, "Trial 0, split 0"))


def assert_chart_looks_right(draw: Callable[[Figure], object], height_inches: float = 2.8) -> None:
    """Check a chart of a page in the style and size that `inline_svg` gives it."""

    def checked(figure: Figure) -> None:
        draw(figure)
        looked_at.append(figure)
        assert_looks_right(figure)

    looked_at: list[Figure] = []
    charts.inline_svg("x", height_inches, checked)
    assert len(looked_at) == 1


@pytest.mark.parametrize("scale_name", ["linear", "log"])
def test_the_paths_of_a_page(scale_name):
    assert_chart_looks_right(lambda figure: charts.draw_path(figure, path_view(), scale_name), 4.2)


def test_the_paths_of_many_coins_name_every_coin_apart():
    p = path_view()
    many = replace(p, coins={name: p.agent * (1.0 + 0.001 * i) for i, name in enumerate(COINS)})
    assert_chart_looks_right(lambda figure: charts.draw_path(figure, many, "linear"), 4.2)


def test_the_names_of_many_curves_stay_next_to_their_panel():
    axes = Figure().subplots()
    charts.name_ends(axes, [(name, 0.5, "black") for name in COINS])
    places = np.array([text.xy[1] for text in axes.texts])
    assert (places.min(), places.max()) == pytest.approx((0.0, 1.0))
    assert np.diff(np.sort(places)).min() > 0.05


@pytest.mark.parametrize("name", ["splits", "values", "turnover", "fees"])
def test_the_trials_of_a_page(name):
    trials = page().trials
    draw = {
        "splits": lambda axes: charts.draw_splits(axes, trials, 1),
        "values": lambda axes: charts.draw_values(axes, trials),
        "turnover": lambda axes: charts.draw_cost(axes, [t for t in trials if t.has_costs], 1, "turnover"),
        "fees": lambda axes: charts.draw_cost(axes, [t for t in trials if t.has_costs], 1, "fees"),
    }[name]
    assert_chart_looks_right(lambda figure: draw(figure.subplots()))


@pytest.mark.parametrize("tickers", [COINS[4:5], COINS])
def test_the_pictures_of_a_dataset(monkeypatch, tickers):
    drawn = []
    monkeypatch.setattr(pictures, "_png", lambda figure: drawn.append(figure) or b"")
    dataset = dataset_from_bars(sample_bars("5m", 600, tickers), tickers, "5m", source="a file")
    pictures.quality_picture(dataset)
    pictures.dataset_picture(dataset)
    for figure in drawn:
        assert_looks_right(figure)
    assert len(drawn) == 2


def test_the_pictures_of_the_benchmarks(monkeypatch):
    faults = {}

    def look(figure: Figure, path: Path, **_: object) -> None:
        faults[path.name] = faults_of(figure) + unnamed_axes(figure)

    monkeypatch.setattr(Figure, "savefig", look)
    paths = readme_table.draw_pictures()
    assert set(paths) == set(readme_table.RESULTS.glob("*.png"))  # every picture in the folder can be drawn again
    assert faults == {path.name: [] for path in paths}


def test_a_cut_off_an_overlap_and_a_missing_name_are_found():
    figure = Figure()
    axes = figure.subplots()
    axes.set_ylabel("y")
    assert unnamed_axes(figure) == ["x of ''"]
    axes.set_title("t" * 300)
    for text in ("one", "two"):
        axes.text(0.5, 0.5, text)
    found = faults_of(figure)
    assert [fault[:8] for fault in found] == ["cut off:", "overlap:"]


@pytest.mark.parametrize(
    "colors",
    [
        (charts.AGENT, charts.EQUAL, charts.RANDOM),
        (charts.AGENT, charts.PRUNED, "black"),
        (charts.AGENT, charts.EQUAL, BAND),
        (charts.AGENT, charts.EQUAL, charts.INK),
        pictures.COIN_COLORS,
        (pictures.USED, pictures.UNUSED, pictures.FILLED, pictures.MISSING, pictures.OUTSIDE),
        pictures.SEGMENTS,
        tuple(capture_summary.COLOURS.values()),
        tuple(calibration_summary.COLOURS.values()),
        (learning.BLUE, learning.ORANGE),
        tuple(color for color, _ in memory.STYLES.values()),
        tuple(color for color, *_ in scale.STYLES.values()),
        tuple(color for color, _ in many_workers.STYLES.values()),
    ],
)
def test_the_colors_of_a_picture_differ_for_the_color_blind(colors):
    distance, sight, one, two = closest(colors)
    assert distance >= LEAST_DISTANCE, f"{one} and {two} look alike with {sight}"


def test_red_and_green_of_one_lightness_are_found():
    distance, sight, *_ = closest(("#d62728", "#6b7a00"))
    assert distance < LEAST_DISTANCE
    assert sight in ("protanopia", "deuteranopia")
