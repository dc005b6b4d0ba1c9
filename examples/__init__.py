"""Short programs, one per library, and PPO in a single file; run them with `python -m examples.NAME`."""
