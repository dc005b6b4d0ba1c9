"""What live trading loads, and everything that it refuses by name."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.policy_file import load_policy, save_policy, weights_sha256
from environment_Alpaca_vectorized import observation_layout
from tests.support.made_deployment import FEATURES, LAYOUT, MARKET, TICKERS, make_band, make_policy, write, write_facts
from train.deploy.loading import (
    FACTS_FILE,
    POLICY_FILE,
    SHARED_FACTS,
    DeploymentError,
    load_deployment,
    pointer_target,
    read_deployment,
    resolve,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "made")


def test_a_deployment_is_loaded_with_all_that_trading_it_needs(folder):
    found = load_deployment(folder, **MARKET, layout_of=observation_layout, data_sha256="d" * 64)
    assert found.folder == folder
    assert (found.name, found.tickers, found.feature_names) == ("made", tuple(TICKERS), tuple(FEATURES))
    assert (found.bar_seconds, found.warmup_bars, found.proven, found.synthetic) == (300, 10, True, False)
    assert found.env_params == {"rules": "standard", "lookback": 2}
    assert found.observation_layout == tuple(map(tuple, LAYOUT))
    state = torch.randn(3, 11, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.policy(state), make_policy()(state))


def test_a_deployed_band_trades_as_it_was_scored_and_is_refused_with_another_constant(tmp_path):
    folder = write(tmp_path / "made", policy=make_band())
    found = load_deployment(folder, **MARKET, layout_of=observation_layout)
    state = torch.rand(3, 11, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.policy(state), make_band()(state))
    assert found.policy.head == "band"
    other = replace(make_band(), least_weight=torch.full((2,), 2e-3))
    facts = json.loads((folder / FACTS_FILE).read_text())
    save_policy(folder / POLICY_FILE, other, {name: facts[name] for name in SHARED_FACTS})
    write_facts(folder, facts)
    with pytest.raises(DeploymentError, match="not the ones that were scored"):
        load_deployment(folder, **MARKET)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tickers": ["ETH", "BTC"]}, "tickers must be in the order BTC, ETH; received ETH, BTC"),
        ({"tickers": ["BTC", "LTC"]}, r"tickers\[1\] must be ETH; received LTC"),
        ({"tickers": ["BTC"]}, r"needs 2 tickers \(BTC, ETH\); received 1 \(BTC\)"),
        ({"feature_names": FEATURES[::-1]}, "feature_names must be in the order"),
        ({"feature_names": [*FEATURES[:3], "ETH:adx"]}, r"feature_names\[3\] must be ETH:macd; received ETH:adx"),
        ({"feature_names": FEATURES[:3]}, "needs 4 feature_names"),
        ({"bar_seconds": 900}, "trades bars of 300 s; received bars of 900 s"),
        ({"data_sha256": "e" * 64}, "trained on data dddddddddddd; received eeeeeeeeeeee"),
        ({"layout_of": lambda *_: (("cash_weight", 1), ("tech", 10))}, "this program builds"),
    ],
)
def test_another_market_is_refused_by_name(folder, change, words):
    with pytest.raises(DeploymentError, match=words):
        load_deployment(folder, **(MARKET | change))


@pytest.mark.parametrize(
    ("fact", "flag", "words"),
    [
        ({"synthetic": True}, "allow_synthetic", "SYNTHETIC market"),
        ({"proven": False, "waived": ("hold-out return",)}, "allow_unproven", r"unproven \(waived: hold-out return\)"),
    ],
)
def test_what_must_not_trade_money_needs_a_flag(tmp_path, fact, flag, words):
    folder = write(tmp_path / "made", **fact)
    with pytest.raises(DeploymentError, match=words):
        load_deployment(folder, **MARKET)
    facts = vars(load_deployment(folder, **MARKET, **{flag: True}).facts)
    assert facts.items() >= fact.items()


@pytest.mark.parametrize("name", [FACTS_FILE, POLICY_FILE])
def test_any_damage_is_refused(folder, name):
    path = folder / name
    whole = path.read_bytes()
    places = np.linspace(0, len(whole) - 1, 60).astype(int).tolist()
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DeploymentError):
            read_deployment(folder)
        path.write_bytes(whole[:place])
        with pytest.raises(DeploymentError):
            read_deployment(folder)
    path.unlink()
    with pytest.raises(DeploymentError, match=name):
        read_deployment(folder)


def test_weights_that_were_not_scored_are_refused_even_with_fitting_checksums(folder):
    facts = json.loads((folder / FACTS_FILE).read_text())
    metadata = load_policy(folder / POLICY_FILE).metadata
    other = make_policy(seed=1)
    save_policy(folder / POLICY_FILE, other, metadata)
    with pytest.raises(DeploymentError, match=r"does not match the hash in deployment\.json"):
        read_deployment(folder)
    write_facts(folder, facts)
    with pytest.raises(DeploymentError, match="not the ones that were scored"):
        read_deployment(folder)
    write_facts(folder, facts | {"weights_sha256": weights_sha256(other)})
    with pytest.raises(DeploymentError, match="not the ones that were scored"):
        read_deployment(folder)


def test_edited_facts_are_refused(tmp_path):
    folder = write(tmp_path / "made", proven=False)
    text = (folder / FACTS_FILE).read_text()
    (folder / FACTS_FILE).write_text(text.replace('"proven": false', '"proven": true'))
    with pytest.raises(DeploymentError, match="edited or damaged"):
        read_deployment(folder)
    write_facts(folder, json.loads(text) | {"proven": True})  # with a new checksum the policy file still disagrees
    with pytest.raises(DeploymentError, match="disagree about proven"):
        read_deployment(folder)


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", [FACTS_FILE, POLICY_FILE])
def test_a_pickle_is_refused_and_not_run(folder, tmp_path, name):
    mark = tmp_path / "ran"
    (folder / name).write_bytes(pickle.dumps(Touch(mark)))
    with pytest.raises(DeploymentError):
        read_deployment(folder)
    torch.save({"weights": Touch(mark)}, folder / name)
    with pytest.raises(DeploymentError):
        read_deployment(folder)
    assert not mark.exists()


def test_current_is_followed_once_and_leads_only_beside_itself(folder, tmp_path):
    write(tmp_path / "other", seed=1)
    current = tmp_path / "current"
    with pytest.raises(DeploymentError, match="no deployment found"):
        resolve(current)
    current.symlink_to("made")
    found = read_deployment(current)
    assert (found.folder, pointer_target(current)) == (folder, "made")
    current.unlink()
    current.write_text("other\n")  # a file system without links
    assert read_deployment(current).name == pointer_target(current) == "other"
    for bad in ("../made", "", "/etc", "..", "x" * 300):
        current.write_text(bad)
        with pytest.raises(DeploymentError, match="does not contain the name of a deployment"):
            resolve(current)
    current.write_text("gone")
    with pytest.raises(DeploymentError, match="no deployment found"):
        resolve(current)


def test_an_empty_or_foreign_folder_is_no_deployment(tmp_path):
    with pytest.raises(DeploymentError, match="this is not a deployment folder"):
        read_deployment(tmp_path)
    (tmp_path / FACTS_FILE).write_text("[1]")
    with pytest.raises(DeploymentError, match="does not describe a deployment"):
        read_deployment(tmp_path)


@pytest.mark.slow
def test_the_loader_needs_neither_optuna_nor_pandas():
    code = "import sys, train.deploy.loading; print(sorted({'optuna', 'pandas', 'sqlalchemy'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
