"""Settings of one training run, validated on creation."""

from __future__ import annotations

import math
from dataclasses import dataclass

ON_POLICY, OFF_POLICY = ("ppo", "a2c"), ("sac", "td3", "ddpg")
EXACT_GRADIENT = ("band",)
LR_SCHEDULES = ("constant", "linear")
GRADIENTS = ("auto", "autograd", "by_hand")
OBSERVATION_STORES = ("rows", "bars")
PRECISIONS = (None, "highest", "high")
OWN_HORIZON = {"band": 1024}  # default horizon of agents that do not use SHORT_HORIZON
SHORT_HORIZON = 128
# An entry pays its fee immediately and recovers it over many bars. In a window of 64 bars, even the best loses money.
LEAST_BAND_BARS = 1000
STARTS = (None, "first", "random", "stratified")


@dataclass(frozen=True)
class TrainConfig:
    """Training settings of a policy; the settings of the environment are in `env_params`.

    Attributes:
        agent: "ppo", "a2c", "band", "sac", "td3" or "ddpg".
        n_envs: number of environments stepped together; 1 selects the scalar class, or a batch of one account for the
            band agent.
        total_env_steps: total steps of all environments; the last rollout is always completed.
        horizon_len: steps of each environment per rollout. 0 selects the agent's default: 1024 for the band, otherwise
            128. The band needs at least 1000 bars for any `n_envs`; if a segment is shorter, a rollout spans several.
        net_dims: widths of the hidden layers.
        learning_rate: Adam's step size.
        lr_schedule: "constant" or "linear". With "linear", the rate decreases with the share of the budget spent before
            each rollout, from the full rate in the first update to 1 / n_updates of it in the last.
        gamma: discount factor per bar.
        gae_lambda: lambda of generalized advantage estimation; on-policy.
        clip_range: clipping range of the probability ratio; PPO.
        entropy_coef: weight of the policy's entropy; on-policy.
        value_coef: weight of the value loss in the joint gradient; on-policy.
        max_grad_norm: upper bound of the gradient norm.
        n_epochs: passes over every sample of a rollout; on-policy. Standard A2C uses 1.
        batch_size: samples per gradient step.
        target_kl: KL divergence above which an update stops after the current epoch. None never stops early. On-policy.
        adam_eps: Adam's epsilon.
        normalize_observations: normalize observations by running mean and deviation, which are saved with the policy.
        action_std_init_log: log of the initial standard deviation of an action before its tanh; on-policy.
        gradients: "autograd" for torch's gradients, or "by_hand" for closed-form gradients that are equal up to
            rounding. "auto" times both before the first update on a CPU and uses the faster one; on a GPU it uses
            autograd, because closed-form gradients were not measured there. On-policy.
        matmul_precision: precision of float32 matrix products. "highest" is float32 and "high" is TF32 on GPUs. None
            selects the device's default: "highest" on the CPU, "high" on a GPU.
        observation_store: how a rollout stores observations: as complete "rows", or as account columns plus a bar index
            ("bars"), for vectorized environments of this project. Both give the same results up to rounding. "bars"
            uses 1/35 of the memory (7 coins, lookback 4). Its speed for exploration plus update is 0.97 to 1.02 times
            that of "rows" with random starts, and 1.06 to 1.33 times if accounts share bars with `start` "first" (12
            and 512 environments, widths 128 and 512, one thread). The default is "rows". On-policy.
        buffer_size: size of the replay memory in transitions of all environments; smaller if the run has fewer.
            Off-policy.
        updates_per_sample: gradient steps per new sample; off-policy.
        warmup_env_steps: uniformly random steps before learning; off-policy.
        soft_update_tau: interpolation factor of target network updates; off-policy.
        fee_ramp: share of the budget over which fees and slippage rise from zero to their full rates; 0 disables the
            ramp. It applies to training environments only; validation, tests and deployment pay full costs. Agents with
            a replay memory do not support it, because they would mix samples with different costs.
        weight_decay: decoupled weight decay per gradient step, multiplied by the learning rate (AdamW); band.
        dropout: fraction of a hidden layer's units dropped in a gradient step; band.
        remove_drift: remove each coin's mean return over the training bars from the objective; band.
        eval_every_updates: updates between two evaluations on validation bars.
        episode_bars: steps of a training window; None runs to the end of its segment. The band needs None or at least
            1000 bars.
        start: start of training windows: "random", "first", "stratified", or None for the default of the rule set.
        seed: seed of weights, noise, minibatches and starts.
        gpu_id: GPU number; -1 is the CPU.
        cpu_threads: number of threads for torch and numba. The default is 1, because additional threads help only if
            cores are guaranteed to be idle (see `train.device`). A different number changes rounding and therefore the
            results.
        rocm_settings: apply the settings of `train.rocm`, which have not been measured, on AMD GPUs. Ignored on other
            devices.
    """

    agent: str = "ppo"
    n_envs: int = 1
    total_env_steps: int = 100_000
    horizon_len: int = 0
    net_dims: tuple[int, ...] = (128, 128)
    learning_rate: float = 3e-4
    lr_schedule: str = "constant"
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy_coef: float = 0.0
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    n_epochs: int = 4
    batch_size: int = 512
    target_kl: float | None = None
    adam_eps: float = 1e-5
    normalize_observations: bool = True
    action_std_init_log: float = -0.5
    gradients: str = "auto"
    matmul_precision: str | None = None
    observation_store: str = "rows"
    buffer_size: int = 200_000
    updates_per_sample: float = 0.25
    warmup_env_steps: int = 1_000
    soft_update_tau: float = 5e-3
    fee_ramp: float = 0.0
    weight_decay: float = 0.0
    dropout: float = 0.0
    remove_drift: bool = True
    eval_every_updates: int = 10
    episode_bars: int | None = None
    start: str | None = "random"
    seed: int = 0
    gpu_id: int = -1
    cpu_threads: int = 1
    rocm_settings: bool = True

    def __post_init__(self) -> None:
        """Raise an error that names the setting, its value and the expected range."""
        object.__setattr__(self, "net_dims", tuple(self.net_dims))
        if self.horizon_len == 0 and not isinstance(self.horizon_len, bool):
            object.__setattr__(self, "horizon_len", OWN_HORIZON.get(self.agent, SHORT_HORIZON))
        _one_of("agent", self.agent, ON_POLICY + EXACT_GRADIENT + OFF_POLICY)
        _one_of("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _one_of("start", self.start, STARTS)
        _one_of("gradients", self.gradients, GRADIENTS)
        _one_of("matmul_precision", self.matmul_precision, PRECISIONS)
        self._check_precision()
        _one_of("observation_store", self.observation_store, OBSERVATION_STORES)
        if self.observation_store == "bars" and (self.is_off_policy or self.n_envs == 1):
            raise ValueError('observation_store "bars" needs agent PPO, A2C or band, and several environments; '
                             f'received agent "{self.agent}", n_envs {self.n_envs}')  # fmt: skip
        counts = ("n_envs", "total_env_steps", "horizon_len", "n_epochs", "batch_size", "buffer_size")
        for name in (*counts, "eval_every_updates", "cpu_threads"):
            _count(name, getattr(self, name), least=1)
        _count("warmup_env_steps", self.warmup_env_steps, least=0)
        _count("gpu_id", self.gpu_id, least=-1)
        _count("seed", self.seed, least=0)
        if self.episode_bars is not None:
            _count("episode_bars", self.episode_bars, least=1)
        if not self.net_dims:
            raise ValueError("net_dims must have at least one hidden layer; received ()")
        for width in self.net_dims:
            _count("net_dims", width, least=1)
        self._check_numbers()
        self._check_band()

    def _check_band(self) -> None:
        windows = {"horizon_len": self.horizon_len, "episode_bars": self.episode_bars}
        short = [(name, bars) for name, bars in windows.items() if bars is not None and bars < LEAST_BAND_BARS]
        if self.agent == "band" and short:
            name, bars = short[0]
            raise ValueError(
                f'{name} must be at least {LEAST_BAND_BARS} bars for agent "band", because an entry earns its fee back '
                f"over many bars; received {bars}"
            )

    def _check_numbers(self) -> None:
        for name in ("learning_rate", "clip_range", "max_grad_norm", "adam_eps", "updates_per_sample"):
            _number(name, getattr(self, name), above=0.0)
        for name in ("gamma", "gae_lambda", "soft_update_tau"):
            _number(name, getattr(self, name), least=0.0, most=1.0)
        for name in ("entropy_coef", "value_coef", "weight_decay"):
            _number(name, getattr(self, name), least=0.0)
        for name in ("fee_ramp", "dropout"):
            _number(name, getattr(self, name), least=0.0, most=1.0)
        if self.fee_ramp > 0.0 and self.is_off_policy:
            raise ValueError(f'fee_ramp needs an agent without a replay memory; received agent "{self.agent}"')
        _number("action_std_init_log", self.action_std_init_log, least=-10.0, most=3.0)
        if self.target_kl is not None:
            _number("target_kl", self.target_kl, above=0.0)

    def _check_precision(self) -> None:
        if self.matmul_precision == "high" and self.gpu_id < 0:
            raise ValueError(
                'matmul_precision must be "highest" on a CPU, because "high" is TF32, which CPUs do not have; '
                f"received gpu_id {self.gpu_id}"
            )
        if self.gradients != "auto" and self.is_off_policy:
            raise ValueError(f'gradients "{self.gradients}" is for on-policy agents; received agent "{self.agent}"')

    @property
    def is_off_policy(self) -> bool:
        """True if the agent learns from a replay memory."""
        return self.agent in OFF_POLICY

    @property
    def warmup_len(self) -> int:
        """Random steps of each environment before learning starts."""
        return math.ceil(self.warmup_env_steps / self.n_envs) if self.is_off_policy else 0

    @property
    def rollout_len(self) -> int:
        """Steps of each environment per rollout: `horizon_len`, or fewer if the whole budget is smaller."""
        return min(self.horizon_len, math.ceil(self.total_env_steps / self.n_envs))

    @property
    def n_updates(self) -> int:
        """Number of rollouts, and therefore updates, in the budget."""
        return math.ceil(self.total_env_steps / (self.rollout_len * self.n_envs))

    @property
    def replay_size(self) -> int:
        """Size of the replay memory in transitions: `buffer_size`, or fewer if the whole run has fewer."""
        return min(self.buffer_size, (self.warmup_len + self.n_updates * self.rollout_len) * self.n_envs)


def _one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}; received {value!r}")


def _count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}; received {value!r}")


def _number(
    name: str, value: float, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> None:
    """Check that a number is finite with above < value and least <= value <= most."""
    if not (math.isfinite(value) and value > above and least <= value <= most):
        bounds = [f"above {above}"] * (above > -math.inf) + [f"at least {least}"] * (least > -math.inf)
        bounds += [f"at most {most}"] * (most < math.inf)
        raise ValueError(f"{name} must be a finite number {' and '.join(bounds)}; received {value!r}")
