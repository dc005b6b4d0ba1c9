"""On a GPU an adapter that returns tensors must not wait for the device. Tested here: no operation reads a value.

Under the adapter runs a simulator that reads nothing through torch on a CPU: the native step where accounts restart by
themselves, and the plain step, whose masked reset checks no bars, elsewhere.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.scalar_accounts import CONFIG, N_ENVS, OPTIONS, STANDARD, drawn_actions

READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item")


class NoReading(TorchDispatchMode):
    """Raises where a value goes from the device to Python."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        has_mask = name == "index" and any(index is not None and index.dtype is torch.bool for index in args[1])
        if name in READING or has_mask:
            raise AssertionError(f"{name} would wait for a GPU")
        return func(*args, **(kwargs or {}))


def test_the_mode_finds_what_waits():
    with NoReading():
        mask = torch.tensor([True, False])
        for waits in (mask.any, mask.nonzero, lambda: mask[mask]):
            with pytest.raises(AssertionError, match="would wait"):
                bool(waits().any())


def simulator(autoreset):
    env_class = VectorizedCryptoEnvAlpacaOptimized if autoreset else VectorizedCryptoEnvAlpaca
    return env_class(CONFIG, STANDARD, N_ENVS, autoreset=autoreset, **OPTIONS)


def gymnasium_pair(mode):
    from adapters.gymnasium_vector import CryptoVectorEnv

    envs, looking = (
        CryptoVectorEnv(env=simulator(mode == "SameStep"), autoreset_mode=mode, output="torch") for _ in range(2)
    )
    envs.on_cpu = False  # takes the way of a GPU
    return envs, looking


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_gymnasiums_tensors_are_the_same_without_a_look_at_them(mode):
    pytest.importorskip("gymnasium", minversion="1.4", reason="gymnasium 1.4 or newer is not installed")
    envs, looking = gymnasium_pair(mode)
    envs.reset()
    looking.reset()
    for actions in drawn_actions(30):
        with NoReading():
            *values, infos = envs.step(torch.from_numpy(actions))
        *wanted_values, wanted = looking.step(torch.from_numpy(actions))
        for value, wanted_value in zip(values, wanted_values, strict=True):
            assert torch.equal(value, wanted_value)
        for name in ("_final_obs", "_final_info", "_episode_return"):
            mask = infos.get(name, torch.zeros(N_ENVS, dtype=torch.bool))
            assert torch.equal(mask, wanted.get(name, torch.zeros(N_ENVS, dtype=torch.bool)))
        if "final_obs" in wanted:
            mask = infos["_final_obs"]
            assert torch.equal(infos["final_obs"][mask], wanted["final_obs"][mask])
        done = values[2] | values[3]
        if mode == "Disabled" and done.any():
            for env in (envs, looking):
                env.reset(options={"reset_mask": done})


@pytest.mark.parametrize("name", ["torchrl", "skrl", "rsl_rl"])
def test_a_step_and_a_masked_reset_read_nothing(name):
    pytest.importorskip(name, reason=f"{name} is not installed")
    if name == "torchrl":
        from tensordict import TensorDict

        from adapters.torchrl import CryptoEnv

        env = CryptoEnv(env=simulator(False))
        mask = torch.from_numpy(np.arange(N_ENVS) % 2 == 0)
        for action in (env.reset().set("action", torch.from_numpy(row)) for row in drawn_actions(3)):
            with NoReading():
                env._step(action)
                env._reset(TensorDict({"_reset": mask[:, None]}, (N_ENVS,)))
        return
    if name == "skrl":
        from adapters.skrl import CryptoWrapper as Adapter
    else:
        from adapters.rsl_rl import CryptoVecEnv as Adapter
    env = Adapter(env=simulator(True))
    env.reset()
    for actions in drawn_actions(20):
        with NoReading():
            env.step(torch.from_numpy(actions))
