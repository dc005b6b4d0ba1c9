"""The public Python interface: the simulator, its adapters and its loaders.

Each name is imported from its module on first use. `import barwise` is therefore fast, and the libraries of an adapter
are required only if that adapter is used.

    dataset = barwise.load_dataset(Path("data/5m"))
    env_params = {"rules": "standard", "lookback": 4}
    env = barwise.VectorizedCryptoEnvAlpacaOptimized(dataset.env_config(), env_params, n_envs=64, gpu_id=-1)
"""

from importlib import import_module
from typing import Any

# name -> module
_HOMES = {
    "CryptoEnvAlpaca": "environment_Alpaca",
    "VectorizedCryptoEnvAlpaca": "environment_Alpaca_vectorized",
    "VectorizedCryptoEnvAlpacaOptimized": "environment_Alpaca_vectorized",
    "Costs": "environment_Alpaca_vectorized",
    "Dataset": "market.dataset",
    "load_dataset": "market.dataset",
    "save_dataset": "market.dataset",
    "dataset_from_bars": "market.build",
    "dataset_from_host": "market.host_import",
    "read_bars": "market.bars.candles",
    "synthetic_dataset": "market.sample",
    "load_policy": "drl_agents.policy_file",
    "load_deployment": "train.deploy.loading",
    "gymnasium_env": "adapters.gymnasium_single",
    "gymnasium_vector_env": "adapters.gymnasium_vector",
    "stable_baselines3": "adapters.stable_baselines3",
    "torchrl": "adapters.torchrl",
    "skrl": "adapters.skrl",
    "rsl_rl": "adapters.rsl_rl",
}
_MODULES = ("gymnasium_env", "gymnasium_vector_env", "stable_baselines3", "torchrl", "skrl", "rsl_rl")


def __getattr__(name: str) -> Any:
    """Import a name when it is first used.

    Raises:
        AttributeError: if barwise has no attribute of this name.
        ImportError: if a required library is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'barwise' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all public names, including those not yet imported."""
    return sorted({*globals(), *_HOMES})
