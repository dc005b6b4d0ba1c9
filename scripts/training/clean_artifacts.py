#!/usr/bin/env python3
"""List the files of each study in an artifact store, and remove the files of deleted studies."""

import sys

try:
    from barwise.commands.clean_artifacts import main
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"clean_artifacts.py: {missing}: run pip install -e . in the repository, or activate its environment: "
        "source .venv/bin/activate\n"
    )
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
