#!/usr/bin/env python3
"""Make a dataset folder from a host repository's pickles price_array, tech_array and time_array, running no code."""

import sys

try:
    from barwise.commands.import_host_data import main
except ModuleNotFoundError as missing:
    if missing.name != "barwise":
        raise
    sys.stderr.write("import_host_data.py: barwise is not installed for this Python: pip install -e . in the repository, "
                     "or activate its environment: source .venv/bin/activate\n")
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
