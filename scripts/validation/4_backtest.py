#!/usr/bin/env python3
"""Backtest a trial over full paths: at several cost levels, and retrained with other seeds."""

import sys

try:
    from barwise.commands.backtest_trial import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"4_backtest.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
