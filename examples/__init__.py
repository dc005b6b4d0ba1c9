"""Short programs that each answer one question. Run them with `python -m examples.NAME`."""
