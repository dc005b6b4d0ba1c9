#!/usr/bin/env python3
"""Evaluate a trial's policies again on their test blocks, by split and by full path, beside simple benchmarks."""

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
