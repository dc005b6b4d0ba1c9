#!/usr/bin/env python3
"""Look-ahead analysis: change only later bars, rerun, and report the first earlier bar that differs."""

import sys

try:
    from barwise.commands.find_lookahead import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"lookahead.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
