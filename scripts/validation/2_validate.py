#!/usr/bin/env python3
"""Reevaluate a trial's policies on their test folds, per split and per full path, and compare them with benchmarks."""

import sys

try:
    from barwise.commands.validate import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"2_validate.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
