"""DRLAgent, the factory that FinRL's and Cappuccino's scripts call, based on this repository's training loop."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drl_agents.agents import AGENTS
from drl_agents.policy import Policy
from drl_agents.policy_file import PolicyFileError, load_policy
from train.config import LEAST_BAND_BARS, TrainConfig
from train.env_factory import is_vectorized, observation_of, resolved_rules
from train.run import BEST_POLICY, TrainResult, train_policy

log = logging.getLogger(__name__)

MODELS = AGENTS
DEFAULT_N_ENVS = 8  # default for a vectorized class, as in the hosts
HIDDEN_LAYERS = 2  # with `net_dimension` units each
LEAST_UPDATES = 4  # minimum number of updates; a larger target_step is reduced to allow them

# The hosts' and elegantrl's names for settings of TrainConfig, with a conversion of the value.
KWARG_NAMES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "net_dimension": ("net_dims", lambda width: (int(width),) * HIDDEN_LAYERS),
    "net_dim": ("net_dims", lambda width: (int(width),) * HIDDEN_LAYERS),
    "net_dims": ("net_dims", lambda widths: tuple(int(width) for width in widths)),
    "learning_rate": ("learning_rate", float),
    "batch_size": ("batch_size", int),
    "gamma": ("gamma", float),
    "lambda_gae_adv": ("gae_lambda", float),
    "lambda_entropy": ("entropy_coef", float),
    "ratio_clip": ("clip_range", float),
    "clip_grad_norm": ("max_grad_norm", float),
    "soft_update_tau": ("soft_update_tau", float),
    "horizon_len": ("horizon_len", int),
    "max_memo": ("buffer_size", int),
    "thread_num": ("cpu_threads", int),
    "random_seed": ("seed", int),
}
# Names that hosts use but that have no effect here: evaluation intervals count updates, and the study sets the workers.
SILENT_KWARGS = {"eval_time_gap", "eval_gap", "eval_times", "break_step", "worker_num", "use_multiprocessing"}


@dataclass(frozen=True)
class Model:
    """Settings that `get_model` passes to `train_model`."""

    settings: TrainConfig
    target_step: int | None  # samples per rollout over all environments; None keeps settings.horizon_len
    env_class: type
    config: Mapping[str, Any]
    env_params: Mapping[str, Any]
    env_options: Mapping[str, Any]


class DRLAgent:
    """Trains and applies agents for hosts.

    Args:
        env: class of the environment; a constructor with an `n_envs` parameter builds a vectorized environment.
        price_array: (T, A) closes.
        tech_array: (T, F) features.
        env_params: rules and norms; its `n_envs` is passed to a vectorized class.
        if_log: passed to the environment.
        host_options: additional options, such as `tickers`, passed to the environment if its constructor accepts them.
    """

    def __init__(
        self,
        env: type,
        price_array: np.ndarray,
        tech_array: np.ndarray,
        env_params: Mapping[str, Any],
        if_log: bool = False,
        **host_options: Any,
    ) -> None:
        self.env = env
        self.price_array = price_array
        self.tech_array = tech_array
        self.env_params = env_params
        self.if_log = if_log
        self.host_options = host_options

    def get_model(self, model_name: str, gpu_id: int = -1, model_kwargs: Mapping[str, Any] | None = None) -> Model:
        """Return the settings of a run.

        Args:
            model_name: "ppo", "a2c", "band", "sac", "td3" or "ddpg".
            gpu_id: -1 selects the CPU; a missing GPU selects the CPU with a warning.
            model_kwargs: settings with elegantrl's, the hosts' or TrainConfig's names.
        """
        _check_model_name(model_name)
        n_envs = int(self.env_params.get("n_envs", DEFAULT_N_ENVS)) if is_vectorized(self.env) else 1
        given = _settings_of(model_name, model_kwargs or {})
        target_step = given.pop("target_step", None)
        settings = TrainConfig(**{"start": None, **given}, agent=model_name, n_envs=n_envs, gpu_id=_usable_gpu(gpu_id))
        config = {"price_array": self.price_array, "tech_array": self.tech_array, "if_train": True}
        if self.host_options.get("tickers") is not None:
            config["tickers"] = list(self.host_options["tickers"])
        return Model(settings, target_step, self.env, config, self.env_params, self._env_options())

    def _env_options(self) -> dict[str, Any]:
        """Return host options that the environment's constructor accepts; warn about ignored options that matter."""
        known = inspect.signature(self.env).parameters
        options = {"if_log": self.if_log, **self.host_options}
        ignored = sorted(name for name, value in options.items() if name not in known and value)
        for name in sorted(set(ignored) - {"if_log", "tickers", "data_interval"}):
            log.warning("%s has no parameter %s; it has no effect", self.env.__name__, name)
        return {name: value for name, value in options.items() if name in known}

    def train_model(self, model: Model, cwd: str | Path, total_timesteps: float = 5000) -> TrainResult:
        """Train for `total_timesteps` steps, summed over all environments, and write the policies to `cwd`."""
        settings = replace(model.settings, total_env_steps=int(total_timesteps))
        longest = max(1, math.ceil(settings.total_env_steps / settings.n_envs / LEAST_UPDATES))
        wanted = settings.horizon_len if model.target_step is None else max(1, model.target_step // settings.n_envs)
        least = LEAST_BAND_BARS if settings.agent == "band" else 1
        settings = replace(settings, horizon_len=max(least, min(wanted, longest)))
        return train_policy(
            settings, model.config, model.env_params, cwd, env_class=model.env_class, env_kwargs=model.env_options
        )

    @staticmethod
    def DRL_prediction(  # noqa: N802 - the hosts' name
        model_name: str, cwd: str | Path, net_dimension: int | None, environment: Any, gpu_id: int = -1
    ) -> list[float]:
        """Trade one episode with the policy in `cwd`.

        Returns:
            Account values, starting with the initial one. For a vectorized environment, the values are those of its
            first account.

        Raises:
            PolicyFileError: If the policy is missing, damaged, from a different agent, or trained on different
                observations than those of `environment`.
        """
        _check_model_name(model_name)
        path = Path(cwd) / BEST_POLICY
        policy = load_policy(
            path,
            state_dim=environment.state_dim,
            action_dim=environment.action_dim,
            net_dims=None if net_dimension is None else (net_dimension,) * HIDDEN_LAYERS,
        )
        _check_match(path, policy, model_name, environment)
        if getattr(environment, "start", "first") != "first":
            log.warning('The environment starts at a random bar; build it with start="first" to trade all of its bars')
        gpu_id = _usable_gpu(gpu_id)
        device = torch.device(f"cuda:{gpu_id}" if gpu_id >= 0 else "cpu")
        values = _trade_one_episode(policy.to(device), environment, device)
        log.info("Test finished, episode return %.4f", values[-1] / values[0] - 1.0)
        return values


def _check_model_name(model_name: str) -> None:
    if model_name not in MODELS:
        raise NotImplementedError(f"model_name must be one of {', '.join(MODELS)}; received {model_name!r}")


def _check_match(path: Path, policy: Policy, model_name: str, environment: Any) -> None:
    """Reject a policy from a different agent, or for different observations of equal width, if the file has them."""
    agent, layout = policy.metadata.get("agent"), policy.metadata.get("observation_layout")
    if agent is not None and agent != model_name:
        raise PolicyFileError(f"{path} does not match: its agent is {agent}, expected {model_name}")
    seen = observation_of(environment)
    if seen is None or layout is None:
        return
    lookback = resolved_rules(policy.metadata.get("env_params") or {})["lookback"]
    if lookback != seen.lookback:
        raise PolicyFileError(f"{path} does not match: its lookback is {lookback}, the environment's {seen.lookback}")
    found, expected = dict(layout), dict(seen.layout)
    if list(found.items()) != list(expected.items()):
        raise PolicyFileError(f"{path} does not match: its observation is {found}, the environment's {expected}")


def _settings_of(model_name: str, model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return model_kwargs as fields of TrainConfig, and `target_step` unchanged."""
    settings: dict[str, Any] = {}
    own = set(TrainConfig.__dataclass_fields__) - {"agent", "n_envs", "gpu_id", "total_env_steps"}
    for name, value in model_kwargs.items():
        if name == "target_step":
            settings[name] = int(value)
        elif name == "repeat_times":
            is_off_policy = TrainConfig(agent=model_name).is_off_policy
            settings |= {"updates_per_sample": float(value)} if is_off_policy else {"n_epochs": max(1, round(value))}
        elif name in KWARG_NAMES:
            field, convert = KWARG_NAMES[name]
            settings[field] = convert(value)
        elif name in own:
            settings[name] = value
        elif name not in SILENT_KWARGS:
            log.warning("model_kwargs: %s is not a setting of these agents; it has no effect", name)
    return settings


def _usable_gpu(gpu_id: int) -> int:
    """Return `gpu_id` if that GPU exists, otherwise -1, because hosts request GPU 0 by default."""
    if gpu_id < 0 or (torch.cuda.is_available() and gpu_id < torch.cuda.device_count()):
        return gpu_id
    log.warning("GPU %d does not exist; using the CPU", gpu_id)
    return -1


def _trade_one_episode(policy: Callable[[torch.Tensor], torch.Tensor], env: Any, device: torch.device) -> list[float]:
    values = [float(env.initial_total_asset)]
    state, is_done = env.reset(), False
    act = _for_one_account(policy, state)
    while not is_done and act is not None:
        state, _, is_done, info = env.step(act(np.asarray(state, dtype=np.float32)))
        values.append(_account_value(env, info))
    while not is_done:
        batch = torch.as_tensor(state, dtype=torch.float32, device=device)
        action = policy(batch)
        state, _, done, info = env.step(action if batch.ndim == 2 else action.cpu().numpy())
        values.append(_account_value(env, info))
        is_done = bool(done[0]) if batch.ndim == 2 else bool(done)
    return values


def _for_one_account(policy: Any, state: Any) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the compiled policy for one account with NumPy observations on the CPU, if numba is installed."""
    is_row = isinstance(state, np.ndarray) and state.ndim == 1
    if not is_row or not isinstance(policy, Policy) or policy.head != "orders" or policy.device.type != "cpu":
        return None
    policy(torch.as_tensor(state, dtype=torch.float32))  # torch rejects an observation of a different width
    try:
        return importlib.import_module("drl_agents.compiled_mlp").for_one_row(policy)
    except ImportError:
        return None


def _account_value(env: Any, info: Any) -> float:
    """Return the first account's value after a step, from `info` for a vectorized environment with autoreset."""
    if isinstance(info, dict) and "equity" in info:
        return float(np.atleast_1d(torch.as_tensor(info["equity"]).cpu().numpy())[0])
    return float(env.cash + (env.price_array[env.time] * env.stocks).sum())
