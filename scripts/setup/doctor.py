#!/usr/bin/env python3
"""Run `barwise doctor` from this checkout, also on a Python without any installed packages."""

import os
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    as_this = ["-S"] if sys.flags.no_site else []
    command = [sys.executable, *as_this, "-m", "barwise", "doctor", *sys.argv[1:]]
    # PYTHONSAFEPATH: a folder named `train` in the current directory must not be imported.
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"})
