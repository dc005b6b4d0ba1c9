#!/usr/bin/env python3
"""Generate a dataset folder from the synthetic sample market."""

import sys

try:
    from barwise.commands.make_sample import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"make_sample.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
