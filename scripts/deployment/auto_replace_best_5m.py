#!/usr/bin/env python3
"""Watch a study; refit its winner, check it on held-out bars, and put it in place of the deployed policy."""

import sys

try:
    from barwise.commands.deploy_best import main
except ModuleNotFoundError as missing:
    if missing.name != "barwise":
        raise
    sys.stderr.write(
        "auto_replace_best_5m.py: barwise is not installed for this Python: pip install -e . in the repository, "
        "or activate its environment: source .venv/bin/activate\n"
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
