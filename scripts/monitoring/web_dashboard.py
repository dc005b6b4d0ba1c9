#!/usr/bin/env python3
"""Serve a study with optuna-dashboard to browsers on this machine, including the equity curves of each trial."""

import sys

try:
    from barwise.commands.web_dashboard import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"web_dashboard.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
