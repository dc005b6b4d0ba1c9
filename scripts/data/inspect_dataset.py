#!/usr/bin/env python3
"""Verify a dataset folder, print a summary of it, and draw its prices and features."""

import sys

try:
    from barwise.commands.inspect_dataset import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"inspect_dataset.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
