"""Fixtures: a small synthetic market, and real bars where the machine has them."""

import os
from pathlib import Path

import pytest

from market.sample import sample_bars, synthetic_dataset

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_bars_dir():
    folder = Path(os.environ.get("CRYPTO_BARS_DIR") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "crypto_5m_2024-01_2024-08.parquet").is_file():
        pytest.skip(f"no real bars in {folder}; set CRYPTO_BARS_DIR to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def bars():
    """Tidy 5-minute bars, 600 each of PEPE, BTC and ETH."""
    return sample_bars("5m", 600, ("PEPE", "BTC", "ETH"), seed=3)


@pytest.fixture(scope="session")
def dataset():
    """300 usable 5-minute bars of BTC and PEPE."""
    return synthetic_dataset("5m", 300, ("BTC", "PEPE"), seed=1)
