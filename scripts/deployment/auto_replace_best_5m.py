#!/usr/bin/env python3
"""Monitor a study, refit its winner, evaluate it on the hold-out, and deploy it if it passes all gates."""

import sys

try:
    from barwise.commands.deploy_best import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"auto_replace_best_5m.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
