#!/usr/bin/env python3
"""Show a trader, or with --training a study, live in the terminal. Nothing is written; Ctrl-C exits."""

import sys

try:
    from barwise.commands.dashboard import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"paper_trader_dashboard.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
