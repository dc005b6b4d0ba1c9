"""Version of the code that created a result."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Code that affects a trial's result, in addition to data and settings.
TRIAL_CODE = (
    "environment_Alpaca*.py", "environment_Alpaca_kernels/*.py", "drl_agents/**/*.py", "market/**/*.py",
    "train/**/*.py",
)  # fmt: skip


# Written when a wheel is built (setup.py).
BUILT_VERSION = Path(__file__).with_name("code_version.txt")


def is_checkout() -> bool:
    """Return True if this code runs from a checkout of the repository instead of an installed wheel."""
    return (ROOT / "pyproject.toml").is_file()


def home() -> Path:
    """Return the base folder of default paths: the repository in a checkout, otherwise the current folder."""
    return ROOT if is_checkout() else Path.cwd()


@cache
def code_version() -> str:
    """Return the commit, with `-dirty` for uncommitted changes. A wheel has the version of its build, or "unknown"."""
    if not is_checkout():
        return BUILT_VERSION.read_text().strip() if BUILT_VERSION.is_file() else "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


@cache
def trial_code_sha256() -> str:
    """Return one hash of all files that affect a trial's result, including uncommitted changes."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in TRIAL_CODE for path in ROOT.glob(pattern)}):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()
