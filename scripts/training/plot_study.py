#!/usr/bin/env python3
"""Plot a study: the best value over time, every split, and the best trial's account compared with equal weight."""

import sys

try:
    from barwise.commands.plot_study import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"plot_study.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
