"""Which version of the code made something."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a trial's numbers come from, beside data and settings.
TRIAL_CODE = (
    "environment_Alpaca*.py", "environment_Alpaca_kernels/*.py", "drl_agents/**/*.py", "market/**/*.py",
    "train/**/*.py",
)  # fmt: skip


# Written into a wheel when it is built (setup.py).
BUILT_VERSION = Path(__file__).with_name("code_version.txt")


def is_checkout() -> bool:
    """Whether this code runs from a checkout of the repository, and not from an installed wheel."""
    return (ROOT / "pyproject.toml").is_file()


def home() -> Path:
    """The folder of default paths: the repository in a checkout, else the current folder."""
    return ROOT if is_checkout() else Path.cwd()


@cache
def code_version() -> str:
    """Commit of the code, with `-dirty` for uncommitted changes; a wheel has that of its build; else "unknown"."""
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
    """One hash over the files that read bars, simulate, learn and score: it sees what is not committed, too."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in TRIAL_CODE for path in ROOT.glob(pattern)}):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()
