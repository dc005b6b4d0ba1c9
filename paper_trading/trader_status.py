"""Accounts that a trader has traded, and whether it still does: the folder, `status.json`, and the process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from market.codec import decode, read_object
from market.errors import UserError
from paper_trading.journal import FILE
from paper_trading.presence import STALE_S, STATUS_FILE
from train.store.worker_identity import is_running, this_machine

PROGRAM = "python scripts/deployment/paper_trade.py"
ALIVE, SILENT, DEAD, ENDED = "alive", "silent", "dead", "ended"
ENDED_PHASE = "ended"


class StatusError(UserError):
    """A status file that cannot be read. One line."""


@dataclass(frozen=True)
class Status:
    """`status.json`: what the trader says of itself at every heartbeat."""

    mode: str
    account: str
    pid: int
    start_ticks: int | None
    utc: Annotated[datetime, Meta(tz=True)]
    state: str
    phase: str
    why: str = ""
    machine: str = ""  # whose process numbers `pid` is one of
    in_sample: bool | None = None
    synthetic: bool | None = None
    proven: bool | None = None

    def life(self, now: datetime, has_stopped: bool) -> str:
        """`ALIVE`, `SILENT` (its process runs without a heartbeat), `DEAD` or `ENDED`.

        Args:
            now: with its zone.
            has_stopped: the journal ends with a stop.
        """
        is_fresh = (now - self.utc).total_seconds() <= STALE_S
        if self.machine not in ("", this_machine()):  # of another machine only the heartbeat tells
            is_over = has_stopped or self.phase == ENDED_PHASE
            return ENDED if is_over else ALIVE if is_fresh else SILENT
        if not is_running(self.pid, None, self.start_ticks):
            return ENDED if has_stopped or self.phase == ENDED_PHASE else DEAD
        return ALIVE if is_fresh else SILENT


def read_status(folder: Path) -> Status | None:
    """The last heartbeat; None where there is none.

    Raises:
        StatusError: damaged.
    """
    path = folder / STATUS_FILE
    if not path.is_file():
        return None
    advice = "a running trader rewrites it soon"
    return decode(read_object(path, StatusError, advice), Status, StatusError, str(path), advice)


def find_account(trading_dir: Path, name: str | None) -> Path:
    """The folder of an account; without a name the one with the newest heartbeat.

    Raises:
        UserError: there is none.
    """
    found = {path.parent.name: path.stat().st_mtime for path in trading_dir.glob(f"*/{FILE}")}
    found |= {path.parent.name: path.stat().st_mtime for path in trading_dir.glob(f"*/{STATUS_FILE}")}
    if not found:
        raise UserError(f"no trader has run in {trading_dir}; start one: {PROGRAM} --broker replay")
    if name is not None and name not in found:
        raise UserError(f"{trading_dir} has no account {name}; it has {', '.join(sorted(found))}")
    return trading_dir / (name or max(found, key=lambda account: (found[account], account)))
