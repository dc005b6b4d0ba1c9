#!/usr/bin/env python3
"""Build a dataset folder from a tidy Parquet or CSV file of bars."""

import sys

try:
    from barwise.commands.build_dataset import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"build_dataset.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
