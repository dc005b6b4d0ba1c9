"""Training loop: explore, update, evaluate, save."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from elegantrl.train.config import Config
from torch import Tensor

from drl_agents.agents import AGENTS, AgentBase
from drl_agents.agents.agent_state import AgentStateError, agent_tensors, restore_agent
from drl_agents.agents.AgentPPO import AgentPPO
from drl_agents.agents.bar_features import BarFeatures
from drl_agents.atomic_file import write_atomically
from drl_agents.host_copies import to_device
from drl_agents.policy_file import PolicyFileError, save_policy
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import (
    EnvParams,
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
    observation_layout,
)
from train.checkpoint import Checkpoints, Keeper, anywhere, below, copy_policy, file_tensor, prefixed
from train.config import EXACT_GRADIENT, LEAST_BAND_BARS, TrainConfig
from train.device import prepare_device
from train.env_factory import env_class_for, make_env, step_name
from train.env_state import (
    EnvStateError,
    check_env_tensors,
    env_tensors,
    has_known_state,
    restore_env,
    use_plain_step,
)
from train.evaluator import Act, Score, evaluate_policy, mean_growth, step_of
from train.messages import warn_once
from train.records.provenance import code_version, trial_code_sha256
from train.records.seals import BEST_POLICY, LAST_POLICY

log = logging.getLogger(__name__)

PLAIN_STEP = "torch"
# Numbers of a run that its checkpoint contains in addition to the history.
KEPT = ("env_steps", "samples_learned", "explore_s", "update_s", "evaluate_s", "best_score", "has_best",
        "least_reward", "most_reward")  # fmt: skip


class TrainingDiverged(ArithmeticError):  # noqa: N818 - says what happened
    """Raised if a reward, loss or weight is not finite or all rewards are equal. The message says which, and when."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run after an update."""

    env_steps: int  # total of all environments
    total_env_steps: int
    n_updates: int
    gradient_steps: int
    explore_s: float
    update_s: float
    evaluate_s: float
    mean_reward: float  # mean over the rollout
    losses: tuple[float, ...]  # losses that the agent's update returned
    validation_score: float | None  # None if this update was not evaluated
    is_best: bool
    cost_factor: float = 1.0  # fraction of fees and slippage that the rollout paid, see `TrainConfig.fee_ramp`


@dataclass(frozen=True)
class TrainResult:
    """Results and speed of a run."""

    best_policy: Path
    last_policy: Path
    best_score: float  # best score on validation bars; nan without validation bars
    env_steps: int
    n_updates: int
    gradient_steps: int
    explore_steps_per_s: float  # environment steps per second of exploring
    update_samples_per_s: float  # samples used by gradient steps per second, each counted once per epoch
    wall_s: float
    history: tuple[Progress, ...] = field(repr=False)
    n_checkpoints: int = 0  # number of checkpoints that this process wrote
    checkpoint_s: float = 0.0  # seconds spent writing them
    rewards_vary: bool = True  # False if all rewards were equal, so that nothing can be learned
    stepped_by: str = ""  # step of the training environments, see `train.env_factory.step_name`


def train_policy(
    settings: TrainConfig,
    train_config: Mapping[str, Any],
    env_params: Mapping[str, Any],
    out_dir: str | Path,
    *,
    validation_config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    env_class: type | None = None,
    score: Score = mean_growth,
    checkpoints: Checkpoints | None = None,
) -> TrainResult:
    """Train one policy and save its last and its best version in `out_dir`.

    Args:
        settings: agent, sizes, budget, seed.
        train_config: environment config with the training segments.
        env_params: rules and settings of the environment.
        out_dir: folder for `policy_last.safetensors` and `policy_best.safetensors`.
        validation_config: the same arrays with validation segments. Without it, the best policy is the last one.
        metadata: provenance of the data, stored in the policy files.
        on_progress: function called after every update. An exception that it raises stops the run.
        env_kwargs: additional named parameters of the environments, such as fees.
        env_class: environment class. None selects the single-account class for one environment and the fast vectorized
            class for several. The band agent always uses the latter.
        score: function of the validation records; the highest finite score is best.
        checkpoints: where to save the state of the run, from which a killed run resumes with bit-identical results.
            Only on-policy agents are checkpointed, because a replay memory is about a hundred times as large as the
            rest of a checkpoint. Off-policy runs and runs in a host's own environment restart from the beginning. The
            caller deletes the checkpoints when it has its result.

    Raises:
        TrainingDiverged: a reward, loss or weight is no longer finite.
        ValueError: the environment has no `cost_factor` for the fee ramp, or the agent cannot learn in it.
    """
    prepare_device(settings.gpu_id, settings.cpu_threads, settings.matmul_precision, settings.rocm_settings)
    options = {"gpu_id": settings.gpu_id, **(env_kwargs or {})}
    windows = {"seed": settings.seed, "start": settings.start, "episode_bars": settings.episode_bars}
    if settings.agent in EXACT_GRADIENT and settings.n_envs == 1 and env_class is None:
        # The compiled loop trades one account of the batched class; the scalar class gives the same numbers.
        env_class, options["as_numpy"] = VectorizedCryptoEnvAlpacaOptimized, False
    env_class = env_class or env_class_for(settings.n_envs)
    is_ours = "compact" in inspect.signature(env_class).parameters
    if settings.observation_store == "bars" or (settings.agent == "band" and settings.n_envs > 1 and is_ours):
        options["compact"] = True
    _warn_of_small_budget(settings)
    env = make_env(env_class, train_config, env_params, settings.n_envs, **{**windows, **options})
    _check_fee_ramp(settings, env)
    agent = build_agent(settings, env)
    known = policy_metadata(settings, train_config, env_params, env) | dict(metadata or {})
    known["env_options"] = dict(env_kwargs or {})
    run = _Run(settings, agent, env, Path(out_dir), known)
    if validation_config is not None:
        on = (validation_config, env_params, settings.gpu_id, dict(env_kwargs or {}))
        run.evaluate = _Evaluation(agent.act, *on, score)
    if checkpoints is not None and not settings.is_off_policy and has_known_state(env):
        run.keeper = Keeper(checkpoints, run_identity(known, train_config, validation_config, score))
        run.go_on()
    return run.to_the_end(on_progress)


def _warn_of_small_budget(settings: TrainConfig) -> None:
    """Warn about settings that have no effect because the budget is only a few rollouts."""
    last_rollout = (settings.n_updates - 1) * settings.rollout_len * settings.n_envs
    if last_rollout < settings.fee_ramp * settings.total_env_steps:
        warn_once(
            log,
            f"fee_ramp {settings.fee_ramp:g} with {settings.n_updates} rollouts: no rollout pays the full costs; "
            f"increase total_env_steps ({settings.total_env_steps})",
        )
    if settings.agent == "band" and settings.rollout_len < LEAST_BAND_BARS:
        warn_once(
            log,
            f"total_env_steps {settings.total_env_steps} gives {settings.rollout_len} bars to each of "
            f"{settings.n_envs} accounts; with fewer than {LEAST_BAND_BARS}, most entries lose their fees and the "
            "agent learns not to trade",
        )


def _check_fee_ramp(settings: TrainConfig, env: Any) -> None:
    if settings.fee_ramp > 0.0 and not hasattr(env, "cost_factor"):
        raise ValueError(
            f"fee_ramp must be 0 for {type(env).__name__}, which has no cost_factor; received {settings.fee_ramp}"
        )


def run_identity(
    known: Mapping[str, Any], config: Mapping[str, Any], validation_config: Mapping[str, Any] | None, score: Score
) -> dict[str, Any]:
    """Return everything that determines the results of a run: policy metadata without the trial number, data and code.

    The data are identified by the caller's `data_sha256` or, without it, by their arrays. The code is identified by its
    text.
    """
    identity = {name: value for name, value in known.items() if name not in ("trial", "code_version", "stepped_by")}
    identity["settings"] = anywhere(identity["settings"])
    if not identity.get("data_sha256"):
        arrays = {name: np.ascontiguousarray(config[name]) for name in ("price_array", "tech_array")}
        identity["data_sha256"] = {name: hashlib.sha256(array.data).hexdigest() for name, array in arrays.items()}
    return identity | {
        "validation_segments": None if validation_config is None else validation_config.get("segments"),
        "score": score.__qualname__, "code_sha256": trial_code_sha256(), "torch": torch.__version__,
    }  # fmt: skip


def build_agent(settings: TrainConfig, env: Any) -> AgentBase:
    """Return an agent for `env` on its device, after a reset."""
    agent_class = AGENTS[settings.agent]
    args = agent_args(settings, agent_class, env)
    full_dim = getattr(env, "full_state_dim", env.state_dim)
    agent = agent_class(settings.net_dims, full_dim, env.action_dim, gpu_id=settings.gpu_id, args=args)
    bars = BarFeatures.of(env)
    if bars is not None:
        agent.observe_bars(bars)
    agent.prepare_for(env)
    state = torch.as_tensor(env.reset(), dtype=torch.float32, device=agent.device)
    agent.last_state = state.reshape(settings.n_envs, env.state_dim).clone()
    return agent


def agent_args(settings: TrainConfig, agent_class: type, env: Any) -> Config:
    """Return `settings` under the names that elegantrl and this project's agents read."""
    state_dim = getattr(env, "full_state_dim", env.state_dim)
    sizes = {"state_dim": state_dim, "action_dim": env.action_dim, "if_discrete": False}
    args = Config(agent_class, None, {"env_name": "crypto", "num_envs": settings.n_envs, **sizes})
    same = ("net_dims", "learning_rate", "batch_size", "gamma", "lr_schedule", "value_coef", "target_kl", "adam_eps")
    same += ("normalize_observations", "action_std_init_log", "soft_update_tau")
    same += ("gradients", "weight_decay", "dropout", "remove_drift")
    renamed = {
        "random_seed": settings.seed, "clip_grad_norm": settings.max_grad_norm, "horizon_len": settings.rollout_len,
        "lambda_gae_adv": settings.gae_lambda, "ratio_clip": settings.clip_range,
        "buffer_size": settings.replay_size, "lambda_entropy": settings.entropy_coef,
        "break_step": settings.n_updates * settings.rollout_len,
        "repeat_times": settings.updates_per_sample if settings.is_off_policy else settings.n_epochs,
        "observe_account": bool(getattr(getattr(env, "params", None), "observe_account", False)),
    }  # fmt: skip
    for name, value in {**{name: getattr(settings, name) for name in same}, **renamed}.items():
        setattr(args, name, value)
    return args


def policy_metadata(
    settings: TrainConfig, config: Mapping[str, Any], env_params: Mapping[str, Any], env: Any
) -> dict[str, Any]:
    """Return the metadata of a run for its policy; the observation layout of a host's environment class is unknown."""
    layout = None
    if isinstance(env, CryptoEnvAlpaca | VectorizedCryptoEnvAlpaca):
        n_assets, n_features = config["price_array"].shape[1], config["tech_array"].shape[1]
        layout = observation_layout(EnvParams.from_mapping(env_params), n_assets, n_features)
    return {
        "agent": settings.agent, "settings": asdict(settings), "env_params": dict(env_params),
        "observation_layout": layout, "tickers": config.get("tickers"), "seed": settings.seed,
        "train_segments": config.get("segments"), "code_version": code_version(), "stepped_by": step_name(env),
    }  # fmt: skip


@dataclass
class _Evaluation:
    """Evaluation of the current policy on validation bars."""

    act: Act
    config: Mapping[str, Any]
    env_params: Mapping[str, Any]
    gpu_id: int
    env_kwargs: dict[str, Any]
    score: Score
    stepped_by: str = ""  # step of the last evaluation's environment

    def __call__(self) -> float:
        """Trade the validation bars once."""
        records = evaluate_policy(
            self.act, self.config, self.env_params, gpu_id=self.gpu_id, env_kwargs=self.env_kwargs
        )
        self.stepped_by = step_of(records)
        return self.score(records)


@dataclass
class _Run:
    """State of one training run."""

    settings: TrainConfig
    agent: AgentBase
    env: Any
    out_dir: Path
    metadata: dict[str, Any]
    evaluate: _Evaluation | None = None
    history: list[Progress] = field(default_factory=list)
    env_steps: int = 0
    samples_learned: int = 0
    explore_s: float = 0.0
    update_s: float = 0.0
    evaluate_s: float = 0.0
    best_score: float = -math.inf
    least_reward: float = math.inf
    most_reward: float = -math.inf
    has_best: bool = False  # True if this run wrote a best policy; an earlier run may have left a file in the folder
    wall_s: float = 0.0  # wall time before this process
    started_s: float = field(default_factory=time.perf_counter)
    keeper: Keeper | None = None

    def to_the_end(self, on_progress: Callable[[Progress], None] | None) -> TrainResult:
        """Train until the budget is spent."""
        if self.settings.warmup_len:
            self._explore(self.settings.warmup_len, if_random=True)
        for n_updates in range(len(self.history) + 1, self.settings.n_updates + 1):
            progress = self._one_update(n_updates)
            self.history.append(progress)
            if on_progress is not None:
                on_progress(progress)
            # Not after the last update: the rest is short, and the last policy file has the same weights.
            if self.keeper is not None and n_updates < self.settings.n_updates and self.keeper.is_due():
                self._keep_checkpoint(self.keeper)
        return self._result(self.wall_s + time.perf_counter() - self.started_s)

    def _keep_checkpoint(self, keeper: Keeper) -> None:
        """Write everything that determines the rest of the run, including the best policy's file."""
        started_s = time.monotonic()
        assert self.agent.last_state is not None
        tensors = prefixed("agent", agent_tensors(self.agent)) | prefixed("env", env_tensors(self.env))
        tensors["last_state"] = torch.as_tensor(self.agent.last_state).cpu().clone()
        if self.has_best:
            tensors["best_policy"] = file_tensor(self.out_dir / BEST_POLICY)
        facts = {name: getattr(self, name) for name in KEPT} | {
            "history": [asdict(progress) for progress in self.history],
            "wall_s": self.wall_s + time.perf_counter() - self.started_s,
            "stepped_by": self.metadata["stepped_by"],
            "evaluated_by": "" if self.evaluate is None else self.evaluate.stepped_by,
        }
        keeper.write(facts, tensors, started_s)

    def go_on(self) -> None:
        """Resume from the latest checkpoint of this run, if there is one."""
        assert self.keeper is not None
        for path, facts, tensors in self.keeper.usable():
            try:
                self._take_over(path, facts, tensors)
            except (AgentStateError, EnvStateError, PolicyFileError) as error:
                log.warning("%s: %s; the checkpoint is ignored", path, error)
                continue
            log.info("resuming from %s: %d of %d updates are done", path, len(self.history), self.settings.n_updates)
            return

    def _take_over(self, path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore a checkpoint, or raise an error before any state of the run changes."""
        self._keep_the_step(facts)
        if facts["has_best"]:
            best = self.out_dir / BEST_POLICY
            write_atomically(best, tensors["best_policy"].numpy().tobytes())
            copy_policy(best, best, self.metadata)
        env = below("env", tensors)
        check_env_tensors(self.env, env)
        restore_agent(self.agent, below("agent", tensors), path)
        restore_env(self.env, env)
        self.agent.last_state = to_device(tensors["last_state"], self.agent.device)
        for name in (*KEPT, "wall_s"):
            setattr(self, name, facts[name])
        self.history = [Progress(**row | {"losses": tuple(row["losses"])}) for row in facts["history"]]

    def _keep_the_step(self, facts: Mapping[str, Any]) -> None:
        """Continue with the checkpoint's step implementation, or log that a different one replaces it."""
        before, now = str(facts["stepped_by"]).rpartition(", ")[2], step_name(self.env)
        if PLAIN_STEP in (before, facts["evaluated_by"]) and self.evaluate is not None:
            self.evaluate.env_kwargs["native_step"] = facts["evaluated_by"] != PLAIN_STEP
        if before == now:
            self.metadata["stepped_by"] = facts["stepped_by"]
        elif before == PLAIN_STEP and isinstance(self.env, VectorizedCryptoEnvAlpacaOptimized):
            use_plain_step(self.env)
            self.metadata["stepped_by"] = facts["stepped_by"]
            log.info("using the plain torch step, because the checkpoint was made with it")
        else:
            self.metadata["stepped_by"] = f"{facts['stepped_by']}, {now}"
            why = getattr(self.env, "why_not_native", None)
            log.warning("the checkpoint was made with the %s step, which is not available now%s; using the %s step. "
                        "Results are equal up to rounding, but not bit-identical", before, f" ({why})" * bool(why),
                        "plain torch" if now == PLAIN_STEP else now)  # fmt: skip

    def _one_update(self, n_updates: int) -> Progress:
        cost_factor = self.cost_factor
        mean_reward, items = self._explore(self.settings.rollout_len)
        losses = self._update(items, n_updates)
        score, is_best = None, False
        if n_updates % self.settings.eval_every_updates == 0 or n_updates == self.settings.n_updates:
            score, is_best = self._keep()
        return Progress(
            env_steps=self.env_steps, total_env_steps=self.settings.total_env_steps, n_updates=n_updates,
            gradient_steps=self.agent.gradient_steps, explore_s=self.explore_s, update_s=self.update_s,
            evaluate_s=self.evaluate_s, mean_reward=mean_reward, losses=losses, validation_score=score,
            is_best=is_best, cost_factor=cost_factor,
        )  # fmt: skip

    @property
    def cost_factor(self) -> float:
        """Fraction of fees and slippage that the next rollout pays, given the share of the budget already spent.

        The factor depends only on `env_steps`, which is in the checkpoint, so a resumed run pays the same costs.
        """
        ramp = self.settings.fee_ramp * self.settings.total_env_steps
        return min(1.0, self.env_steps / ramp) if ramp > 0.0 else 1.0

    def _explore(self, n_steps: int, if_random: bool = False) -> tuple[float, Any]:
        if self.settings.fee_ramp > 0.0:
            self.env.cost_factor = self.cost_factor
        started = time.perf_counter()
        items = self.agent.explore_env(self.env, n_steps, if_random)
        self.env_steps += n_steps * self.settings.n_envs
        rewards = items[-2]
        mean_reward = rewards.mean().item()  # waits for the device, so the measured time is correct
        self.explore_s += time.perf_counter() - started
        self._check_finite("the mean reward of a rollout", mean_reward)
        least, most = rewards.aminmax()
        self.least_reward = min(self.least_reward, least.item())
        self.most_reward = max(self.most_reward, most.item())
        return mean_reward, items

    def _update(self, items: Any, n_updates: int) -> tuple[float, ...]:
        started, before = time.perf_counter(), self.agent.gradient_steps
        losses = self.agent.update_net(items)
        self.update_s += time.perf_counter() - started
        for loss in losses:
            self._check_finite(f"a loss of update {n_updates}", loss)
        self.samples_learned += self._samples_of(self.agent.gradient_steps - before)
        return losses

    def _samples_of(self, gradient_steps: int) -> int:
        if self.settings.agent == "band":
            return gradient_steps * self.settings.rollout_len * self.settings.n_envs
        if isinstance(self.agent, AgentPPO) and self.agent.last_update is not None:
            return self.agent.last_update.epochs * self.settings.rollout_len * self.settings.n_envs
        return gradient_steps * self.settings.batch_size

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"{what} is {value}, not a finite number, after {self.env_steps} environment steps; reduce "
                f"learning_rate ({self.settings.learning_rate}) or check the data"
            )

    def _keep(self) -> tuple[float | None, bool]:
        """Evaluate and write the policy files; return the score and whether it is the best so far."""
        started = time.perf_counter()
        score = None if self.evaluate is None else self.evaluate()
        is_best = score is None or (math.isfinite(score) and score > self.best_score)
        policy = self.agent.policy()
        facts = {**self.metadata, "env_steps": self.env_steps, "validation_score": score}
        save_policy(self.out_dir / LAST_POLICY, policy, facts)
        # A run without any finite score still has a best policy: its first.
        if is_best or not self.has_best:
            save_policy(self.out_dir / BEST_POLICY, policy, facts)
            self.has_best = True
        if is_best and score is not None:
            self.best_score = score
        self.evaluate_s += time.perf_counter() - started
        return score, is_best

    def _result(self, wall_s: float) -> TrainResult:
        explored = self.env_steps / max(self.explore_s, 1e-9)
        return TrainResult(
            best_policy=self.out_dir / BEST_POLICY, last_policy=self.out_dir / LAST_POLICY,
            best_score=self.best_score if math.isfinite(self.best_score) else math.nan,
            env_steps=self.env_steps, n_updates=len(self.history), gradient_steps=self.agent.gradient_steps,
            explore_steps_per_s=explored, update_samples_per_s=self.samples_learned / max(self.update_s, 1e-9),
            wall_s=wall_s, history=tuple(self.history),
            n_checkpoints=self.keeper.n_written if self.keeper else 0,
            checkpoint_s=self.keeper.total_s if self.keeper else 0.0,
            rewards_vary=self.most_reward > self.least_reward, stepped_by=self.metadata["stepped_by"],
        )  # fmt: skip
