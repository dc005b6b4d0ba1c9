#!/usr/bin/env python3
"""Download real bars without an API key, or join bar files, into one Parquet or CSV file for build_dataset.py."""

import sys

try:
    from barwise.commands.download_bars import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"download_bars.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
