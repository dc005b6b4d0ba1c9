#!/usr/bin/env python3
"""Serve a study's database to a browser on this machine with optuna-dashboard, each trial's equity curves included."""

import sys

try:
    from barwise.commands.web_dashboard import main
except ModuleNotFoundError as missing:
    if missing.name != "barwise":
        raise
    sys.stderr.write(
        "web_dashboard.py: barwise is not installed for this Python: pip install -e . in the repository, "
        "or activate its environment: source .venv/bin/activate\n"
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
