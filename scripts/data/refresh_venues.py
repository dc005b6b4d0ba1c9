#!/usr/bin/env python3
"""Download Alpaca's order rules (minimum orders and increments), save them with today's date, and print the changes."""

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
