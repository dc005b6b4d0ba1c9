#!/usr/bin/env python3
"""Make a dataset folder from a host repository's pickles price_array, tech_array and time_array, running no code."""

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
