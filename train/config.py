"""Settings of one training run, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

ON_POLICY, OFF_POLICY = ("ppo", "a2c"), ("sac", "td3", "ddpg")
EXACT_GRADIENT = ("band",)
LR_SCHEDULES = ("constant", "linear")
GRADIENTS = ("auto", "autograd", "by_hand")
OBSERVATION_STORES = ("rows", "bars")
PRECISIONS = (None, "highest", "high")
OWN_HORIZON = {"band": 1024}  # of an agent whose horizon is not SHORT_HORIZON
SHORT_HORIZON = 128
# An entry pays its fee at once and earns it back over the following bars: in windows of 64 bars the best entry loses.
LEAST_BAND_BARS = 1000
STARTS = (None, "first", "random", "stratified")


@dataclass(frozen=True)
class TrainConfig:
    """What a policy is trained with. Everything an environment is made of is in `env_params` instead.

    Attributes:
        agent: "ppo", "a2c", "band", "sac", "td3" or "ddpg".
        n_envs: environments stepped at once; 1 takes the scalar class, and for the band agent a batch of one account.
        total_env_steps: steps of all environments together; the last rollout is finished.
        horizon_len: steps of each environment in a rollout. 0 is the agent's own: 1024 for the band, else 128. The band
            needs at least 1000 bars, whatever `n_envs` is; where a segment is shorter, a rollout spans several.
        net_dims: widths of the hidden layers.
        learning_rate: Adam's step size.
        lr_schedule: "constant", or "linear": falling with the share of the budget spent before each rollout, from
            the whole rate for the first update to 1 / n_updates of it for the last.
        gamma: discount per bar.
        gae_lambda: of the advantages; on-policy.
        clip_range: of the probability ratio; PPO.
        entropy_coef: weight of the policy's entropy; on-policy.
        value_coef: weight of the value loss in the joint gradient; on-policy.
        max_grad_norm: bound on the gradient's norm.
        n_epochs: passes over every sample of a rollout; on-policy. A2C proper is 1.
        batch_size: samples per gradient step.
        target_kl: an epoch whose mean divergence passes it is an update's last; None never stops. On-policy.
        adam_eps: Adam's epsilon.
        normalize_observations: by running mean and deviation, saved with the policy.
        action_std_init_log: log of the first deviation of an action before its tanh; on-policy.
        gradients: of the networks: by torch's "autograd", or "by_hand", which gives the same numbers to rounding.
            "auto" takes the one that a timing before the first update finds faster on this CPU, and autograd on a GPU,
            where nobody measured. On-policy.
        matmul_precision: of float32 matrix products. "highest" keeps float32; "high" is TF32, on GPUs. None is the
            device's default: "highest" on the CPU, "high" on a GPU.
        observation_store: what a rollout keeps of an observation: its whole "rows", or account columns and the number
            of its bar ("bars"), for vectorized environments of this repository. The same numbers to rounding in 35
            times less memory (7 coins, lookback 4). Exploring and updating together, bars took 0.97 to 1.02 of the rate
            of rows at random starts and 1.06 to 1.33 where accounts share bars, `start` "first" (12 and 512
            environments, 128 and 512 wide, one thread); hence rows unless asked. On-policy.
        buffer_size: transitions remembered, over all environments, where a run has as many; off-policy.
        updates_per_sample: gradient steps per new sample; off-policy.
        warmup_env_steps: uniformly random steps before learning; off-policy.
        soft_update_tau: how far a target network moves per step; off-policy.
        fee_ramp: share of the budget over which fees and slippage rise from nothing to their full rates; 0 is off.
            Training environments only: what is selected, tested or deployed pays in full. Not for agents with a replay
            memory, which would mix samples of different costs.
        weight_decay: share of every weight, times the learning rate, taken off in a gradient step (AdamW); band.
        dropout: share of a hidden layer's units left out of a gradient step; band.
        remove_drift: whether the training bars' mean return of each coin is taken out of the objective; band.
        eval_every_updates: updates between two evaluations on validation bars.
        episode_bars: steps of a training window; None runs to the end of its segment. For the band None, or at least
            1000 bars.
        start: where windows begin: "random", "first", "stratified", or None for the rule set's own way.
        seed: of weights, noise, minibatches and starts.
        gpu_id: -1 is the CPU.
        cpu_threads: of torch and numba. The default is 1: more are faster only where idle cores are certain (docs in
            `train.device`), and another number gives other rounding, so other bits.
        rocm_settings: whether the unmeasured settings of `train.rocm` are made for an AMD GPU. Other devices ignore it.
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
        """Refuse what cannot be trained with, naming the setting, the value and what is expected."""
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
            raise ValueError('observation_store "bars" needs PPO, A2C or the band, and several environments; '
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
            raise ValueError("net_dims needs at least one hidden layer; received ()")
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
                'matmul_precision "high" is TF32, which CPUs do not have: take "highest"; '
                f"received gpu_id {self.gpu_id}"
            )
        if self.gradients != "auto" and self.is_off_policy:
            raise ValueError(f'gradients "{self.gradients}" is for on-policy agents; received agent "{self.agent}"')

    @property
    def is_off_policy(self) -> bool:
        """Whether the agent learns from a replay memory."""
        return self.agent in OFF_POLICY

    @property
    def warmup_len(self) -> int:
        """Random steps of each environment before learning."""
        return math.ceil(self.warmup_env_steps / self.n_envs) if self.is_off_policy else 0

    @property
    def rollout_len(self) -> int:
        """Steps of each environment in a rollout: `horizon_len`, less where the whole budget is shorter."""
        return min(self.horizon_len, math.ceil(self.total_env_steps / self.n_envs))

    @property
    def n_updates(self) -> int:
        """Rollouts, and so updates, that spend the budget."""
        return math.ceil(self.total_env_steps / (self.rollout_len * self.n_envs))

    @property
    def replay_size(self) -> int:
        """Transitions to keep room for: `buffer_size`, less where the whole run has fewer."""
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
    """Bounds: above < value, least <= value <= most; finite."""
    if not (math.isfinite(value) and value > above and least <= value <= most):
        bounds = [f"above {above}"] * (above > -math.inf) + [f"at least {least}"] * (least > -math.inf)
        bounds += [f"at most {most}"] * (most < math.inf)
        raise ValueError(f"{name} must be a finite number {' and '.join(bounds)}; received {value!r}")
