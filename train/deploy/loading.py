"""A deployed policy, as live trading loads it: one folder, checked as a whole, refused for any market but its own.

    deployments/current -> 20260101T120000Z_<study>_trial7_1a2b3c4d     a relative link, replaced in one step
    deployments/<name>/policy.safetensors                              weights, scaling, observation, settings, scores
    deployments/<name>/deployment.json                                 the same facts, gates and provenance, to read

Nothing in the folder is code or is run: JSON and safetensors. The two files vouch for each other by hashes. That finds
damage, mixing and editing by hand; it is no signature, so whoever may write the folder may replace the policy.

This module imports torch and safetensors only; neither optuna nor pandas.
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
# In both files, and equal there.
SHARED_FACTS = (
    "study", "trial", "seed", "tickers", "feature_names", "bar_seconds", "data_sha256", "env_params",
    "observation_layout", "synthetic", "proven",
)  # fmt: skip

Layout = Sequence[Sequence[Any]]  # (block, width) of each block of an observation
LayoutOf = Callable[[Mapping[str, Any], int, int], Layout]


class DeploymentError(UserError):
    """A deployment that cannot be used. One line that names the folder, what is wrong and what to do."""


@dataclass(frozen=True, kw_only=True)
class _WithHashes(DeploymentFacts):
    policy_sha256: str


@dataclass(frozen=True)
class Deployment:
    """A policy with everything that trading it needs.

    Attributes:
        folder: that holds it; never `current`, which may point elsewhere a moment later.
        policy: (N, S) observations -> (N, A) actions, on the CPU; its scaling is part of it.
        facts: deployment.json.
    """

    folder: Path
    policy: Policy
    facts: DeploymentFacts

    @property
    def name(self) -> str:
        """Of the folder when it was made."""
        return self.facts.name

    @property
    def tickers(self) -> tuple[str, ...]:
        """(A,) coins, in the order of the actions."""
        return self.facts.tickers

    @property
    def feature_names(self) -> tuple[str, ...]:
        """(F,) columns of one bar's features, in the order of the observation."""
        return self.facts.feature_names

    @property
    def bar_seconds(self) -> int:
        """Length of a bar."""
        return self.facts.bar_seconds

    @property
    def warmup_bars(self) -> int:
        """Bars before the first observed one that its features depend on."""
        return self.facts.warmup_bars

    @property
    def env_params(self) -> dict[str, Any]:
        """Rules and settings of the environment, as in training."""
        return dict(self.facts.env_params)

    @property
    def observation_layout(self) -> tuple[tuple[str, int], ...]:
        """(block, width) of an observation, in order; the widths add up to S."""
        return self.facts.observation_layout

    @property
    def proven(self) -> bool:
        """Whether it passed every gate; False where some were waived for paper trading."""
        return self.facts.proven

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on a generated market."""
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
    """Load a deployment for the market that its caller trades, or refuse it.

    Args:
        folder: a deployment, or `deployments/current`.
        tickers: (A,) coins of the caller, in the order in which it reads actions.
        feature_names: (F,) columns the caller feeds, in order.
        bar_seconds: length of the caller's bars.
        data_sha256: of the data set whose bars are fed, where they come from one; None for live bars.
        layout_of: (env_params, A, F) -> blocks of the observation that the caller builds, as
            `environment_Alpaca_vectorized.observation_layout` gives them; None leaves the check to the caller.
        allow_unproven: take a policy that did not pass every gate, for paper trading.
        allow_synthetic: take one that was trained on a generated market.

    Raises:
        DeploymentError: missing, truncated, damaged, altered or foreign files, or another market.
    """
    found = read_deployment(folder)
    where = found.folder
    _same_names(where, "tickers", found.tickers, tickers)
    _same_names(where, "feature_names", found.feature_names, feature_names)
    if found.bar_seconds != bar_seconds:
        raise DeploymentError(f"{where}: trades bars of {found.bar_seconds} s, not of {bar_seconds} s")
    if data_sha256 is not None and data_sha256 != found.facts.data_sha256:
        raise DeploymentError(f"{where}: was trained on data {found.facts.data_sha256[:12]}, not on {data_sha256[:12]}")
    if layout_of is not None:
        ours = [list(block) for block in layout_of(found.env_params, len(tickers), len(feature_names))]
        theirs = [list(block) for block in found.observation_layout]
        if ours != theirs:
            raise DeploymentError(f"{where}: expects the observation {theirs}, and this program builds {ours}")
    if found.synthetic and not allow_synthetic:
        raise DeploymentError(f"{where}: was trained on a SYNTHETIC market and knows nothing of real coins")
    if not found.proven and not allow_unproven:
        waived = ", ".join(found.facts.waived) or "some"
        raise DeploymentError(f"{where}: is unproven (waived: {waived}); only paper trading may load it")
    return found


def read_deployment(folder: str | Path) -> Deployment:
    """Read a deployment and check that it is whole and unaltered; whether it fits a market is not looked at.

    Raises:
        DeploymentError: as `load_deployment`.
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
        raise DeploymentError(f"{path}: is not the file that {FACTS_FILE} was written for")
    _check_facts(where, facts, described, policy)
    return Deployment(where, policy, facts)


def resolve(folder: str | Path) -> Path:
    """The folder itself: `current` followed once, so that a replacement in between cannot mix two deployments.

    Raises:
        DeploymentError: nothing is there, or a pointer that leads nowhere.
    """
    path = Path(folder)
    if path.is_symlink():
        path = path.parent / path.readlink()
    elif path.is_file():  # where the file system has no links
        path = path.parent / _pointed_to(path)
    if not path.is_dir():
        raise DeploymentError(f"{folder}: no deployment is there; scripts/deployment/auto_replace_best_5m.py makes one")
    return path


def pointer_target(link: Path) -> str | None:
    """Name of the folder that `current` leads to, None where there is none.

    Raises:
        DeploymentError: something else is there.
    """
    if link.is_symlink():
        return link.readlink().name
    if link.is_file():
        return _pointed_to(link)
    if link.exists():
        raise DeploymentError(f"{link}: is a folder, not a link to one; move it away")
    return None


def facts_sha256(facts: Mapping[str, Any]) -> str:
    """Hash over deployment.json but for the hash itself."""
    described = {name: value for name, value in facts.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- checks
def _pointed_to(path: Path) -> str:
    with path.open("rb") as file:
        name = file.read(LARGEST_POINTER_BYTES + 1).decode("utf-8", "replace").strip()
    if not name or len(name) > LARGEST_POINTER_BYTES or name != Path(name).name or name in (".", ".."):
        raise DeploymentError(f"{path}: does not name a deployment beside it")
    return name


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FACTS_BYTES + 1)
        facts = json.loads(content)
    except OSError as error:
        raise DeploymentError(f"{path}: cannot be read ({error.strerror}), so the folder is no deployment") from error
    except (ValueError, RecursionError) as error:
        raise DeploymentError(f"{path}: is not whole JSON; roll back, or restore the folder") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DeploymentError(f"{path}: does not describe a deployment")
    if facts.get("format_version") != FORMAT_VERSION:
        raise DeploymentError(f"{path}: has format {facts.get('format_version')}; this code reads {FORMAT_VERSION}")
    if facts.get("sha256") != facts_sha256(facts):
        raise DeploymentError(f"{path}: was edited or damaged: it does not have the checksum stored with it")
    return facts


def _check_facts(where: Path, facts: DeploymentFacts, described: Mapping[str, Any], policy: Policy) -> None:
    """The two files must say the same, and the weights must be those that were scored."""
    for name in SHARED_FACTS:
        if policy.metadata.get(name) != described[name]:
            raise DeploymentError(f"{where}: {FACTS_FILE} and {POLICY_FILE} disagree about {name}")
    if not weights_sha256(policy) == facts.weights_sha256 == facts.scored_weights_sha256:
        raise DeploymentError(f"{where}: its weights are not those that were scored on the hold-out")
    if sum(width for _, width in facts.observation_layout) != policy.state_dim:
        raise DeploymentError(f"{where}: its observation is not {policy.state_dim} wide, as the weights are")


def _same_names(where: Path, what: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    ours = tuple(ours)
    if ours == tuple(theirs):
        return
    if sorted(ours) == sorted(theirs):
        raise DeploymentError(f"{where}: {what} are the same in another order: {_brief(theirs)}, not {_brief(ours)}")
    if len(ours) != len(theirs):
        raise DeploymentError(f"{where}: has {len(theirs)} {what} ({_brief(theirs)}), not {len(ours)} ({_brief(ours)})")
    place = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    raise DeploymentError(f"{where}: number {place} of its {what} is {theirs[place]}, not {ours[place]}")


def _brief(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:4])}, ... {names[-1]}"
