#!/usr/bin/env python3
"""Real bars without a key, downloaded or from files, as one tidy Parquet or CSV file for build_dataset.py."""

import sys

try:
    from barwise.commands.download_bars import main
except ModuleNotFoundError as missing:
    if missing.name != "barwise":
        raise
    sys.stderr.write("download_bars.py: barwise is not installed for this Python: pip install -e . in the repository, "
                     "or activate its environment: source .venv/bin/activate\n")
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
