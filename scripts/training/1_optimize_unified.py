#!/usr/bin/env python3
"""Optimize the hyperparameters of a trading agent in an Optuna study on purged splits of a dataset."""

import sys

try:
    from barwise.commands.optimize import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"1_optimize_unified.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
