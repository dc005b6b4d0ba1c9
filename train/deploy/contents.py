"""Contents of a deployment folder. They are written from a scored policy, read back, and scored again as a check."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from drl_agents.policy import Policy
from drl_agents.policy_file import save_policy, weights_sha256
from train.deploy.case import Case
from train.deploy.gates import Gate, waived_names
from train.deploy.loading import (
    FACTS_FILE,
    FORMAT,
    FORMAT_VERSION,
    POLICY_FILE,
    SHARED_FACTS,
    facts_sha256,
    read_deployment,
)
from train.deploy.scores import Scored, score_policies
from train.env_factory import resolved_rules
from train.evaluator import step_of
from train.records.errors import StudyError
from train.records.provenance import code_version
from train.records.record_files import plain, write_json
from train.records.stored import DeployedData, DeploymentFacts, OrderRules
from train.study.folds import HoldoutRows
from train.study.split_files import write_equity

EQUITY_FILE = "equity.npz"


def deployment_facts(case: Case, gates: Sequence[Gate], policy: Policy, scored: Scored, test: int) -> DeploymentFacts:
    """Return the contents of deployment.json without the file hashes."""
    dataset, settings, held = case.trial.data.dataset, case.trial.settings, case.trial.data.holdout
    assert held is not None
    config, stamp = dataset.env_config(), datetime.fromtimestamp(time.time(), tz=UTC)
    digest, known = weights_sha256(policy), policy.metadata
    waived = waived_names(gates, case.request.limits)
    sizes = zip(config["tickers"], config["min_order_qty"], config["qty_increment"], strict=True)
    return DeploymentFacts(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=f"{stamp:%Y%m%dT%H%M%S%fZ}_{settings.study}_trial{case.trial.number}_{digest[:8]}",
        created=stamp.isoformat(timespec="seconds"),
        study=settings.study,
        study_uuid=case.candidate.uuid,
        trial=case.trial.number,
        trial_value=case.best.value,
        seed=known["seed"],
        refit_seed=case.candidate.seed,
        proven=not waived,
        waived=tuple(waived),
        synthetic=dataset.synthetic,
        tickers=tuple(dataset.tickers),
        feature_set=dataset.feature_set,
        feature_names=tuple(dataset.feature_names),
        bar_seconds=dataset.bar_seconds,
        warmup_bars=dataset.warmup_bars,
        observation_layout=tuple((str(block), int(width)) for block, width in known["observation_layout"]),
        env_params=case.trial.env,
        env_resolved=resolved_rules(case.trial.env),
        venue=settings.venue,
        order_rules={ticker: OrderRules(float(least), float(step)) for ticker, least, step in sizes},
        data_sha256=dataset.sha256,
        data=DeployedData(
            label=dataset.label,
            source=dataset.source,
            parent_sha256=case.trial.data.parent_sha256,
            first_time_s=int(dataset.time[0]),
            last_time_s=int(dataset.time[-1]),
        ),
        holdout=held,
        test=test,
        scores=scored.to_json(),
        gates=tuple(gate.to_json() for gate in gates),
        options=dict(case.candidate.options),
        train=known["settings"],
        sampled=settings.sampled,
        code_version=code_version(),
        trained_by=known["code_version"],
        stepped_by=known.get("stepped_by"),
        scoring_stepped_by=step_of(scored.records),
        weights_sha256=digest,
    )


def write_deployment(folder: Path, policy: Policy, facts: DeploymentFacts, scored: Scored, rows: HoldoutRows) -> None:
    """Write the policy file, deployment.json and the account on the held-out bars into the folder."""
    content = json.loads(json.dumps(plain(facts)))
    shared = {name: content[name] for name in (*SHARED_FACTS, "scores", "holdout", "warmup_bars", "name")}
    path = save_policy(folder / POLICY_FILE, policy, shared)
    content |= {"policy_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    write_json(folder / FACTS_FILE, content | {"sha256": facts_sha256(content)})
    write_equity(folder / EQUITY_FILE, scored.records, np.asarray(rows.dataset.time))


def check_written(folder: Path, scored: Scored, rows: HoldoutRows, gpu_id: int = -1) -> None:
    """Read the files back as live trading does, score them again, and reject any difference.

    Raises:
        StudyError: the written policy is not the scored one.
        DeploymentError: the folder cannot be read.
    """
    found = read_deployment(folder)
    (again,) = score_policies([found.policy], [found.env_params], rows, gpu_id)
    if not scored.is_same(again):
        raise StudyError(f"{folder}: the written policy does not trade like the policy that was scored")
