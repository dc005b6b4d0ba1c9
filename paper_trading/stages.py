"""The trading request, the matching deployment, and the venue with its bars."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from environment_Alpaca_vectorized import observation_layout
from market.dataset import MANIFEST, Dataset, load_dataset
from market.defaults import LIVE_URL, PAPER_URL
from market.errors import UserError
from market.features import FEATURE_SETS
from market.names import currency_of
from market.sources.assets import keys_of
from market.times import utc_text
from paper_trading.alpaca_venue import AlpacaBroker, AlpacaFeed, VenueClock
from paper_trading.broker import Broker, answered
from paper_trading.feeds import DatasetFeed, Feed
from paper_trading.replay_venue import FaultyBroker, ReplayBroker
from paper_trading.risk import Limits
from train.deploy.loading import CURRENT, Deployment, DeploymentError, load_deployment, read_deployment
from train.env_factory import rules_of

log = logging.getLogger(__name__)

MAKE_ONE = (
    "deploy a finished study with scripts/deployment/auto_replace_best_5m.py --once, or trade a sample with "
    "./start_vectorized_training.sh --trade"
)


@dataclass(frozen=True)
class Request:
    """Settings from the command line."""

    deployments: Path
    trading: Path
    broker: str  # "alpaca" | "replay"
    names_broker: bool = True  # True if --broker was given
    live_url: str | None = None  # URL of the account with real money
    paper_url: str = PAPER_URL
    data_url: str | None = None
    data_dir: Path | None = None
    data_roots: tuple[Path, ...] = ()  # folders that a replay searches for its dataset
    once: bool = False
    all_bars: bool = False
    pace_s: float = 0.0
    faults: tuple[str, ...] = ()
    seed: int = 0
    allow_unproven: bool = False
    resumes: bool = False
    adopts: bool = False
    capital: Decimal | None = None
    sends_at_once: bool = False
    order_timeout_s: float = 20.0
    bar_timeout_s: float = 20.0
    limits: Limits = field(default_factory=Limits)
    alert_command: str | None = None


@dataclass(frozen=True)
class Stage:
    """A venue with its bars."""

    broker: Broker
    feed: Feed
    clock: VenueClock
    n_steps: int | None  # bars of the account's episode, for observations of its progress
    in_sample: bool | None  # None for live bars
    data_sha256: str | None


LOOPBACK = ("127.0.0.1", "::1", "localhost")  # test servers without encryption


def check_addresses(paper_url: str, live_url: str | None) -> None:
    """Check that the URLs send neither paper orders to a live account nor API keys to a foreign server.

    Raises:
        UserError: if a URL is not allowed.
    """
    for flag, url, own in (("--paper-url", paper_url, PAPER_URL), ("--live-url", live_url, LIVE_URL)):
        if url is None:
            continue
        parts = urlsplit(url)
        host, is_own = (parts.hostname or "").rstrip("."), urlsplit(own).hostname
        if parts.username is not None or parts.password is not None:
            raise UserError(f"{flag} must not contain a user name or password; keys are read from the environment")
        if host not in LOOPBACK and (host != is_own or parts.scheme != "https"):
            other = urlsplit(PAPER_URL if flag == "--live-url" else LIVE_URL).hostname
            what = ", which is the live account and requires --live" if host == other and flag == "--paper-url" else ""
            what = ", which is the paper account" if host == other and flag == "--live-url" else what
            raise UserError(f"{flag} must be {own}; received {parts.scheme}://{host}{what}")


# ------------------------------------------------------------------------------------------------------- the deployment
def deployed(request: Request, **fits: Any) -> Deployment:
    """Return the deployment that `current` links to.

    Raises:
        DeploymentError: if there is none, or if it is damaged or not allowed on this venue.
    """
    link = request.deployments / CURRENT
    if not os.path.lexists(link):
        raise DeploymentError(f"{request.deployments}: nothing is deployed; {MAKE_ONE}")
    found = read_deployment(link)
    own: dict[str, Any] = {"tickers": found.tickers, "feature_names": found.feature_names}
    own |= {"bar_seconds": found.bar_seconds, "layout_of": observation_layout}
    own |= {"allow_synthetic": request.broker == "replay"}
    own |= {"allow_unproven": request.broker == "replay" or (request.allow_unproven and request.live_url is None)}
    found = load_deployment(found.folder, **(own | fits))
    rules = found.env_params.get("rules")
    if rules != "standard":
        raise DeploymentError(f"{found.folder}: the policy was trained with rule set {rules!r}; only 'standard' "
                              "sizes orders that a venue accepts")  # fmt: skip
    if request.broker == "alpaca":
        _check_live_columns(found)
    return found


def _check_live_columns(found: Deployment) -> None:
    """Raise DeploymentError if live bars cannot provide the deployment's columns and coins."""
    name = found.facts.feature_set
    made = FEATURE_SETS[name].names(found.tickers, found.bar_seconds) if name in FEATURE_SETS else ()
    if made != found.feature_names:
        raise DeploymentError(f"{found.folder}: its columns belong to no known feature set, so they cannot be computed "
                              "from live bars; use --broker replay")  # fmt: skip
    others = [ticker for ticker in found.tickers if currency_of(ticker) != "USD"]
    if others:
        raise DeploymentError(
            f"{found.folder}: {', '.join(others)} is not quoted in USD, the currency of this venue's account"
        )


# ------------------------------------------------------------------------------------------------------------ the venue
def replay_stage(request: Request, deployment: Deployment, sleep: Any) -> Stage:
    """Return a replay of recorded bars, by default of the hold-out.

    Raises:
        UserError: if the dataset or its hold-out is not found.
    """
    folder = request.data_dir or _data_of(deployment, request.data_roots)
    dataset = load_dataset(folder)
    data_sha256 = dataset.sha256
    if dataset.tickers != deployment.tickers and set(deployment.tickers) <= set(dataset.tickers):
        dataset = dataset.with_tickers(deployment.tickers)
    first, last = (0, len(dataset.time)) if request.all_bars else _held_out_rows(deployment, dataset, folder)
    lookback = int(deployment.env_params["lookback"])
    begin = next(a for a, b in dataset.segments if first < b)
    row = max(first, begin + lookback - 1)
    feed = DatasetFeed(dataset, row, last, request.pace_s, sleep)
    broker: Any = ReplayBroker(rules_of(deployment.env_params), deployment.tickers)
    broker = FaultyBroker(broker, request.faults, request.seed) if request.faults else broker
    which = "IN-SAMPLE" if request.all_bars else "hold-out"
    span = f"{utc_text(dataset.time[row])} .. {utc_text(dataset.time[last - 1])} UTC"
    log.info("replaying %s bars %s of %s", which, span, dataset.label)
    return Stage(broker, feed, VenueClock(), feed.n_steps, request.all_bars, data_sha256)


def _data_of(deployment: Deployment, roots: tuple[Path, ...]) -> Path:
    """Return the folder of the dataset with this deployment's hold-out, found by its hash."""
    held = deployment.facts.holdout
    wanted = deployment.facts.data_sha256 if held is None else held.parent_sha256
    for manifest in sorted(path for root in roots for path in root.glob(f"**/{MANIFEST}")):
        try:
            if json.loads(manifest.read_text()).get("sha256") == wanted:
                return manifest.parent
        except (OSError, ValueError):
            continue
    looked = ", ".join(map(str, roots))
    raise UserError(f"the dataset of {deployment.name} was not found in {looked}; pass its folder with --data-dir")


def _held_out_rows(deployment: Deployment, dataset: Dataset, folder: Path) -> tuple[int, int]:
    held = deployment.facts.holdout
    if held is None:
        raise UserError(f"{deployment.name} has no hold-out; use --all-bars to replay all bars, marked IN-SAMPLE")
    first = int(np.searchsorted(dataset.time, held.first_time_s))
    last = int(np.searchsorted(dataset.time, held.last_time_s, side="right"))
    if last - first < 2:
        raise UserError(f"{folder}: does not contain the hold-out of {deployment.name}; use --all-bars to replay all "
                        "its bars, marked IN-SAMPLE")  # fmt: skip
    return first, last


def alpaca_stage(request: Request, deployment: Deployment, sleep: Any) -> Stage:
    """Return the stage of Alpaca's paper or live account.

    Raises:
        UserError: if keys are missing or wrong, or if the URL is wrong.
    """
    clock, is_live = VenueClock(), request.live_url is not None
    url = request.live_url or request.paper_url
    keys = keys_of(os.environ)
    broker = answered(lambda: AlpacaBroker(keys, deployment.tickers, url, request.data_url, is_live, clock), sleep)
    feed = AlpacaFeed(request.data_url, clock, request.bar_timeout_s, sleep)
    held = deployment.facts.holdout
    n_steps = None if held is None else max(held.bars - 1, 1)  # length of the hold-out episode
    return Stage(broker, feed, clock, n_steps, None, None)
