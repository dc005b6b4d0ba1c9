"""Adapters from the simulator to the interfaces of other libraries, with one optional module per library.

`import adapters` registers the id `CryptoAlpaca-v0` if Gymnasium is installed. It imports no other library.

    import adapters
    envs = gymnasium.make_vec("CryptoAlpaca-v0", num_envs=64, config=config, env_params=env_params)

| library | class | example |
|---|---|---|
| Gymnasium, N environments | `adapters.gymnasium_vector.CryptoVectorEnv` | examples/gymnasium_vector.py |
| Gymnasium, one environment | `adapters.gymnasium_single.CryptoEnv` | examples/gymnasium_single.py |
| Stable-Baselines3 | `adapters.stable_baselines3.CryptoVecEnv` | examples/train_stable_baselines3.py |
| TorchRL | `adapters.torchrl.CryptoEnv` | examples/train_torchrl.py |
| skrl | `adapters.skrl.CryptoWrapper` | examples/train_skrl.py |
| rsl_rl | `adapters.rsl_rl.CryptoVecEnv` | examples/train_rsl_rl.py |

Every class accepts `config`, `env_params`, a number of environments and the options of
`VectorizedCryptoEnvAlpacaOptimized`, and constructs that environment. Pass `env=` to use an existing environment
instead.
"""

from importlib.util import find_spec

ENV_ID = "CryptoAlpaca-v0"

if find_spec("gymnasium") is not None:
    import gymnasium

    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            ENV_ID,
            entry_point="adapters.gymnasium_single:CryptoEnv",
            vector_entry_point="adapters.gymnasium_vector:CryptoVectorEnv",
        )
