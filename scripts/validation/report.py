#!/usr/bin/env python3
"""Write the HTML report of a study, also while the study runs."""

import sys

try:
    from barwise.commands.write_report import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"report.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
