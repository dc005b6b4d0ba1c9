#!/usr/bin/env python3
"""Is a study's winner skilled, lucky, or just exposed? PBO and deflated Sharpe of its lead, and of its account."""

import sys

try:
    from barwise.commands.pbo import main
except ModuleNotFoundError as missing:
    if missing.name != "barwise":
        raise
    sys.stderr.write(
        "5_pbo.py: barwise is not installed for this Python: pip install -e . in the repository, "
        "or activate its environment: source .venv/bin/activate\n"
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
