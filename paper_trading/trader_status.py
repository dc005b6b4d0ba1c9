"""Status of a trader, from its account folder, `status.json` and its process."""

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
    """A status file that cannot be read."""


@dataclass(frozen=True)
class Status:
    """Content of `status.json`, which the trader writes at every heartbeat."""

    mode: str
    account: str
    pid: int
    start_ticks: int | None
    utc: Annotated[datetime, Meta(tz=True)]
    state: str
    phase: str
    why: str = ""
    machine: str = ""  # machine to which `pid` belongs
    in_sample: bool | None = None
    synthetic: bool | None = None
    proven: bool | None = None

    def life(self, now: datetime, has_stopped: bool) -> str:
        """Return `ALIVE`, `SILENT` (running without a recent heartbeat), `DEAD` or `ENDED`.

        Args:
            now: current time with a time zone.
            has_stopped: True if the journal ends with a `stop` event.
        """
        is_fresh = (now - self.utc).total_seconds() <= STALE_S
        if self.machine not in ("", this_machine()):  # on another machine, only the heartbeat is known
            is_over = has_stopped or self.phase == ENDED_PHASE
            return ENDED if is_over else ALIVE if is_fresh else SILENT
        if not is_running(self.pid, None, self.start_ticks):
            return ENDED if has_stopped or self.phase == ENDED_PHASE else DEAD
        return ALIVE if is_fresh else SILENT


def read_status(folder: Path) -> Status | None:
    """Return the last heartbeat, or None if there is none.

    Raises:
        StatusError: if the file is damaged.
    """
    path = folder / STATUS_FILE
    if not path.is_file():
        return None
    advice = "a running trader rewrites it within seconds"
    return decode(read_object(path, StatusError, advice), Status, StatusError, str(path), advice)


def find_account(trading_dir: Path, name: str | None) -> Path:
    """Return the folder of an account, or without a name the one with the latest heartbeat.

    Raises:
        UserError: if there is no such account.
    """
    found = {path.parent.name: path.stat().st_mtime for path in trading_dir.glob(f"*/{FILE}")}
    found |= {path.parent.name: path.stat().st_mtime for path in trading_dir.glob(f"*/{STATUS_FILE}")}
    if not found:
        raise UserError(f"{trading_dir} contains no account; start a trader with {PROGRAM} --broker replay")
    if name is not None and name not in found:
        raise UserError(f"{trading_dir} has no account {name}; choose from {', '.join(sorted(found))}")
    return trading_dir / (name or max(found, key=lambda account: (found[account], account)))
