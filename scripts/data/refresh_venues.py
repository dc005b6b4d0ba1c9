#!/usr/bin/env python3
"""Read Alpaca's order rules (smallest orders, increments) and write them with today's date, saying what changed."""

import sys

try:
    from barwise.commands.refresh_venues import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"refresh_venues.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
