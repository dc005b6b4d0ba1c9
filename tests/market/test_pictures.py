"""Pictures: whole PNG files, equal for equal datasets, for any number of coins, and what each state looks like."""

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from market.build import dataset_from_bars
from market.dataset import make_dataset
from market.pictures import FILLED, MISSING, OUTSIDE, UNUSED, USED, dataset_picture, quality_picture
from market.sample import sample_bars

MANY = ("AAVE", "ATOM", "AVAX", "BCH", "BTC", "DOGE", "ETC", "ETH", "LINK", "LTC", "MATIC", "NEAR", "OP", "PEPE")
MANY += ("SHIB", "SOL", "UNI", "XRP")


def pixels(picture):
    assert picture.startswith(b"\x89PNG")
    return matplotlib.image.imread(io.BytesIO(picture))[..., :3]


def count(picture, colour):
    return int((np.abs(pixels(picture) - to_rgb(colour)).max(axis=2) < 0.01).sum())


@pytest.fixture(scope="module")
def holed():
    """ETH starts late, BTC has a long gap and a run of filled bars."""
    bars = sample_bars("5m", 3_000, ("BTC", "ETH"), seed=5)
    bars = bars.drop(index=[*range(1_500, 1_700), *range(2_500, 2_503), *range(3_000, 3_400)])
    return dataset_from_bars(bars, ["BTC", "ETH"], "5m", source="a file")


@pytest.mark.parametrize("tickers", [MANY[4:5], MANY[:7], MANY])
def test_any_number_of_coins_is_drawn_the_same_every_time(tickers):
    dataset = dataset_from_bars(sample_bars("5m", 600, tickers), tickers, "5m", source="a file")
    for draw in (quality_picture, dataset_picture):
        first = draw(dataset)
        assert first == draw(dataset)
        height, width, _ = pixels(first).shape
        assert 1_100 < width < 1_300
        assert height < 2_500
        # Neither the time nor a version is in the file.
        assert b"Software" not in first
        assert b"tIME" not in first


def test_every_state_of_a_bar_has_its_colour(holed):
    picture = quality_picture(holed)
    legend = 200  # pixels of a patch
    for colour in (USED, UNUSED, MISSING, OUTSIDE, FILLED):
        assert count(picture, colour) > legend
    whole = quality_picture(
        dataset_from_bars(sample_bars("5m", 3_000, ("BTC", "ETH"), seed=5), ["BTC", "ETH"], "5m", source="a file")
    )
    for colour in (MISSING, OUTSIDE):
        assert count(picture, colour) > 3 * count(whole, colour)


def test_a_dataset_without_a_report_has_no_quality_picture_and_is_drawn_all_the_same(dataset):
    names = ("price", "tech", "time", "tickers", "feature_names", "bar_seconds", "segments", "source", "synthetic")
    bare = make_dataset(**{name: getattr(dataset, name) for name in names})
    assert quality_picture(bare) is None
    assert dataset_picture(bare).startswith(b"\x89PNG")


def test_a_part_of_a_dataset_and_constant_columns_can_be_drawn(holed):
    part = holed.with_tickers(["ETH"]).with_rows(100, 900)
    assert quality_picture(part).startswith(b"\x89PNG")
    names = ("price", "time", "tickers", "feature_names", "bar_seconds", "segments", "source", "synthetic")
    flat = make_dataset(**{name: getattr(part, name) for name in names}, tech=np.full_like(part.tech, 1e30))
    assert dataset_picture(flat).startswith(b"\x89PNG")
