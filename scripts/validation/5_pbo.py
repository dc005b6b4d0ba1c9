#!/usr/bin/env python3
"""Is a study's winner skilled, lucky, or just exposed? PBO and deflated Sharpe of its lead, and of its account."""

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
