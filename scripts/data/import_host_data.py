#!/usr/bin/env python3
"""Build a dataset folder from the price_array, tech_array and time_array pickles of a host, without running code."""

import sys

try:
    from barwise.commands.import_host_data import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"import_host_data.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
