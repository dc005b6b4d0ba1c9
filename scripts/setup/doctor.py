#!/usr/bin/env python3
"""Start the command `barwise doctor` from this checkout: it must work on a Python that has nothing installed."""

import os
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    as_this = ["-S"] if sys.flags.no_site else []
    command = [sys.executable, *as_this, "-m", "barwise", "doctor", *sys.argv[1:]]
    # Safe path: a folder `train` where this runs is not ours.
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"})
