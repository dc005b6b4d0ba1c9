#!/usr/bin/env python3
"""Trade the deployed policy on paper, on recorded bars, or with real money if both --live and --live-url are given."""

import sys

try:
    from barwise.commands.paper_trade import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"paper_trade.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
