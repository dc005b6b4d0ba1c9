#!/usr/bin/env python3
"""Estimate backtest overfitting: the PBO and deflated Sharpe ratio of a winner's alpha returns and account returns."""

import sys

try:
    from barwise.commands.pbo import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"5_pbo.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
