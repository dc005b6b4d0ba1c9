#!/usr/bin/env python3
"""Evaluate a trial's policies again on their test blocks, by split and by full path, beside simple benchmarks."""

import sys

try:
    from barwise.commands.validate import main
except ModuleNotFoundError as missing:
    if missing.name != "barwise":
        raise
    sys.stderr.write(
        "2_validate.py: barwise is not installed for this Python: pip install -e . in the repository, "
        "or activate its environment: source .venv/bin/activate\n"
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
