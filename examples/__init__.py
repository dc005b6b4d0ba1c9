"""Short programs that answer one question each. Run them with `python -m examples.NAME`."""
