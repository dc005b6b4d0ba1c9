"""Short programs, one per library, and PPO in a single file. Run them with `python -m examples.NAME`."""
