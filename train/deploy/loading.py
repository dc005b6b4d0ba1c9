"""Loading of a deployment for live trading. The folder is verified as a whole and rejected for any other market.

    deployments/current -> 20260101T120000Z_<study>_trial7_1a2b3c4d     relative link, replaced atomically
    deployments/<name>/policy.safetensors                              weights, scaling, observation, settings, scores
    deployments/<name>/deployment.json                                 the same facts, gates and provenance as text

The folder holds only JSON and safetensors; nothing in it is executed. Each file contains hashes of the other. The
hashes detect damage, mixed files and manual edits. They are not a signature: anyone who can write to the folder can
replace the policy.

This module imports torch and safetensors, but neither optuna nor pandas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl_agents.policy import Policy
from drl_agents.policy_file import PolicyFileError, load_policy, weights_sha256
from market.errors import UserError
from train.records.record_files import decode
from train.records.stored import DeploymentFacts

FORMAT, FORMAT_VERSION = "crypto-trading-deployment", 1
POLICY_FILE, FACTS_FILE = "policy.safetensors", "deployment.json"
CURRENT = "current"
LARGEST_FACTS_BYTES = 4 * 2**20
LARGEST_POINTER_BYTES = 255
# Stored in both files, with equal values.
SHARED_FACTS = (
    "study", "trial", "seed", "tickers", "feature_names", "bar_seconds", "data_sha256", "env_params",
    "observation_layout", "synthetic", "proven",
)  # fmt: skip

Layout = Sequence[Sequence[Any]]  # (block, width) of each block of an observation
LayoutOf = Callable[[Mapping[str, Any], int, int], Layout]


class DeploymentError(UserError):
    """Raised if a deployment cannot be used. The message names the folder, the fault and the remedy in one line."""


@dataclass(frozen=True, kw_only=True)
class _WithHashes(DeploymentFacts):
    policy_sha256: str


@dataclass(frozen=True)
class Deployment:
    """A policy with everything needed to trade it.

    Attributes:
        folder: deployment folder; never `current`, which may change later.
        policy: maps observations (N, S) to actions (N, A) on the CPU; it includes the scaling of observations.
        facts: contents of deployment.json.
    """

    folder: Path
    policy: Policy
    facts: DeploymentFacts

    @property
    def name(self) -> str:
        """Name of the deployment folder when it was created."""
        return self.facts.name

    @property
    def tickers(self) -> tuple[str, ...]:
        """Coins (A,) in the order of the actions."""
        return self.facts.tickers

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Feature columns (F,) of one bar, in the order of the observation."""
        return self.facts.feature_names

    @property
    def bar_seconds(self) -> int:
        """Length of a bar in seconds."""
        return self.facts.bar_seconds

    @property
    def warmup_bars(self) -> int:
        """Number of bars before the first observed bar on which its features depend."""
        return self.facts.warmup_bars

    @property
    def env_params(self) -> dict[str, Any]:
        """Rules and settings of the environment, as in training."""
        return dict(self.facts.env_params)

    @property
    def observation_layout(self) -> tuple[tuple[str, int], ...]:
        """(block, width) of each part of an observation, in order; the widths sum to S."""
        return self.facts.observation_layout

    @property
    def proven(self) -> bool:
        """True if the policy passed every gate; False if gates were waived for paper trading."""
        return self.facts.proven

    @property
    def synthetic(self) -> bool:
        """True if the policy was trained on a generated market."""
        return self.facts.synthetic


def load_deployment(
    folder: str | Path,
    *,
    tickers: Sequence[str],
    feature_names: Sequence[str],
    bar_seconds: int,
    data_sha256: str | None = None,
    layout_of: LayoutOf | None = None,
    allow_unproven: bool = False,
    allow_synthetic: bool = False,
) -> Deployment:
    """Load a deployment for the market that the caller trades, or reject it.

    Args:
        folder: a deployment folder, or `deployments/current`.
        tickers: coins (A,) of the caller, in the order in which it reads actions.
        feature_names: feature columns (F,) that the caller provides, in order.
        bar_seconds: length of the caller's bars in seconds.
        data_sha256: hash of the dataset that provides the bars; None for live bars.
        layout_of: function (env_params, A, F) that returns the blocks of the caller's observation, such as
            `environment_Alpaca_vectorized.observation_layout`; None leaves this check to the caller.
        allow_unproven: also accept a policy that did not pass every gate, for paper trading.
        allow_synthetic: also accept a policy that was trained on a generated market.

    Raises:
        DeploymentError: files are missing, truncated, damaged, altered or in a different format, or the market differs.
    """
    found = read_deployment(folder)
    where = found.folder
    _same_names(where, "tickers", found.tickers, tickers)
    _same_names(where, "feature_names", found.feature_names, feature_names)
    if found.bar_seconds != bar_seconds:
        raise DeploymentError(f"{where}: trades bars of {found.bar_seconds} s; received bars of {bar_seconds} s")
    if data_sha256 is not None and data_sha256 != found.facts.data_sha256:
        raise DeploymentError(f"{where}: trained on data {found.facts.data_sha256[:12]}; received {data_sha256[:12]}")
    if layout_of is not None:
        ours = [list(block) for block in layout_of(found.env_params, len(tickers), len(feature_names))]
        theirs = [list(block) for block in found.observation_layout]
        if ours != theirs:
            raise DeploymentError(f"{where}: expects the observation {theirs}, but this program builds {ours}")
    if found.synthetic and not allow_synthetic:
        raise DeploymentError(f"{where}: was trained on a SYNTHETIC market and cannot trade real coins")
    if not found.proven and not allow_unproven:
        waived = ", ".join(found.facts.waived) or "some"
        raise DeploymentError(f"{where}: is unproven (waived: {waived}); only paper trading may load it")
    return found


def read_deployment(folder: str | Path) -> Deployment:
    """Read a deployment and verify that it is complete and unaltered, without comparing it with a market.

    Raises:
        DeploymentError: see `load_deployment`.
    """
    where = resolve(folder)
    described = _read_facts(where / FACTS_FILE)
    facts = decode(described, _WithHashes, str(where / FACTS_FILE), DeploymentError, "roll back, or restore the folder")
    path = where / POLICY_FILE
    try:
        content = path.read_bytes()
        policy = load_policy(path)
    except OSError as error:
        raise DeploymentError(f"{path}: cannot be read ({error.strerror})") from error
    except PolicyFileError as error:
        raise DeploymentError(str(error)) from error
    if hashlib.sha256(content).hexdigest() != facts.policy_sha256:
        raise DeploymentError(f"{path}: does not match the hash in {FACTS_FILE}")
    _check_facts(where, facts, described, policy)
    return Deployment(where, policy, facts)


def resolve(folder: str | Path) -> Path:
    """Return the deployment folder. `current` is followed only once, so that a replacement cannot mix two deployments.

    Raises:
        DeploymentError: the folder does not exist, or the pointer is invalid.
    """
    path = Path(folder)
    if path.is_symlink():
        path = path.parent / path.readlink()
    elif path.is_file():  # used if the file system has no symbolic links
        path = path.parent / _pointed_to(path)
    if not path.is_dir():
        raise DeploymentError(f"{folder}: no deployment found; scripts/deployment/auto_replace_best_5m.py creates one")
    return path


def pointer_target(link: Path) -> str | None:
    """Return the name of the folder that `current` points to, or None if `current` does not exist.

    Raises:
        DeploymentError: `current` is a folder.
    """
    if link.is_symlink():
        return link.readlink().name
    if link.is_file():
        return _pointed_to(link)
    if link.exists():
        raise DeploymentError(f"{link}: is a folder instead of a link to one; move it elsewhere")
    return None


def facts_sha256(facts: Mapping[str, Any]) -> str:
    """Return the hash of deployment.json without its own hash entry."""
    described = {name: value for name, value in facts.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- checks
def _pointed_to(path: Path) -> str:
    with path.open("rb") as file:
        name = file.read(LARGEST_POINTER_BYTES + 1).decode("utf-8", "replace").strip()
    if not name or len(name) > LARGEST_POINTER_BYTES or name != Path(name).name or name in (".", ".."):
        raise DeploymentError(f"{path}: does not contain the name of a deployment in the same folder")
    return name


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FACTS_BYTES + 1)
        facts = json.loads(content)
    except OSError as error:
        raise DeploymentError(f"{path}: cannot be read ({error.strerror}); this is not a deployment folder") from error
    except (ValueError, RecursionError) as error:
        raise DeploymentError(f"{path}: is not valid JSON; roll back, or restore the folder") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DeploymentError(f"{path}: does not describe a deployment")
    if facts.get("format_version") != FORMAT_VERSION:
        raise DeploymentError(f"{path}: format {facts.get('format_version')} is not supported; need {FORMAT_VERSION}")
    if facts.get("sha256") != facts_sha256(facts):
        raise DeploymentError(f"{path}: was edited or damaged: its checksum does not match; roll back, or restore it")
    return facts


def _check_facts(where: Path, facts: DeploymentFacts, described: Mapping[str, Any], policy: Policy) -> None:
    """Verify that the two files agree and that the weights are the scored ones."""
    for name in SHARED_FACTS:
        if policy.metadata.get(name) != described[name]:
            raise DeploymentError(f"{where}: {FACTS_FILE} and {POLICY_FILE} disagree about {name}")
    if not weights_sha256(policy) == facts.weights_sha256 == facts.scored_weights_sha256:
        raise DeploymentError(f"{where}: its weights are not the ones that were scored on the hold-out")
    if (width := sum(width for _, width in facts.observation_layout)) != policy.state_dim:
        raise DeploymentError(f"{where}: its observation has {width} values, but its weights expect {policy.state_dim}")


def _same_names(where: Path, what: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    ours = tuple(ours)
    if ours == tuple(theirs):
        return
    if sorted(ours) == sorted(theirs):
        raise DeploymentError(f"{where}: {what} must be in the order {_brief(theirs)}; received {_brief(ours)}")
    if len(ours) != len(theirs):
        expected = f"{len(theirs)} {what} ({_brief(theirs)})"
        raise DeploymentError(f"{where}: needs {expected}; received {len(ours)} ({_brief(ours)})")
    place = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    raise DeploymentError(f"{where}: {what}[{place}] must be {theirs[place]}; received {ours[place]}")


def _brief(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:4])}, ... {names[-1]}"
