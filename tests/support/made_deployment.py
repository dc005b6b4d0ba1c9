"""Deployments of the right form around random weights: nothing is trained or scored."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from drl_agents.policy import Policy
from drl_agents.policy_file import save_policy, weights_sha256
from train.deploy.loading import FACTS_FILE, FORMAT, FORMAT_VERSION, POLICY_FILE, SHARED_FACTS, facts_sha256

TICKERS = ["BTC", "ETH"]
FEATURES = ["BTC:rsi_14", "BTC:macd", "ETH:rsi_14", "ETH:macd"]
MARKET = {"tickers": TICKERS, "feature_names": FEATURES, "bar_seconds": 300}
LAYOUT = [["cash_weight", 1], ["weight", 2], ["tech", 8]]


def make_policy(seed: int = 0) -> Policy:
    """(N, 11) observations -> (N, 2) actions."""
    random = torch.Generator().manual_seed(seed)
    layers = tuple((torch.randn(n, m, generator=random), torch.zeros(n)) for n, m in ((4, 11), (2, 4)))
    return Policy(torch.zeros(11), torch.ones(11), layers)


def make_band(seed: int = 0) -> Policy:
    """The same with a band as its head."""
    random = torch.Generator().manual_seed(seed)
    layers = tuple((torch.randn(n, m, generator=random), torch.zeros(n)) for n, m in ((4, 8), (4, 4)))
    return Policy(torch.zeros(11), torch.ones(11), layers, head="band", least_weight=torch.full((2,), 1e-3))


def make_facts(policy: Policy, name: str, **changes: Any) -> dict[str, Any]:
    """deployment.json, but for the hashes of the files."""
    digest = weights_sha256(policy)
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "name": name, "study": "s", "trial": 3, "seed": 5, **MARKET,
        "data_sha256": "d" * 64, "env_params": {"rules": "standard", "lookback": 2}, "observation_layout": LAYOUT,
        "data": {"last_time_s": 1_700_000_000}, "synthetic": False, "proven": True, "warmup_bars": 10,
        "weights_sha256": digest, "scores": {"weights_sha256": digest}, **changes,
    }  # fmt: skip


def write(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Fill a folder, made if it is not there."""
    policy = changes.pop("policy", None) or make_policy(seed)
    facts = make_facts(policy, changes.pop("name", folder.name), **changes)
    save_policy(folder / POLICY_FILE, policy, {name: facts[name] for name in SHARED_FACTS})
    write_facts(folder, facts)
    return folder


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """deployment.json with the hashes that belong to it and to the policy file that is there."""
    content = {name: value for name, value in facts.items() if name != "sha256"}
    content["policy_sha256"] = hashlib.sha256((folder / POLICY_FILE).read_bytes()).hexdigest()
    (folder / FACTS_FILE).write_text(json.dumps(content | {"sha256": facts_sha256(content)}))
