"""Trade the deployed policy on paper, on recorded bars, or with real money if both --live and --live-url are given."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from barwise.arguments import exit_code as in_exit_code
from barwise.arguments import factor, here, whole_number
from market.defaults import KEY_VARIABLES, LIVE_URL, PAPER_URL, TRADING_FAULTS, TRADING_LIMITS
from train.records.provenance import home

if TYPE_CHECKING:
    from paper_trading.stages import Request

EPILOG = """
The policy in deployments/current observes each bar exactly as in training, and the simulator's code computes its
orders. All events are recorded in trading/ACCOUNT/journal.jsonl; paper_trader_dashboard.py displays them.
docs/trading.md explains the states and limits.

Without API keys (APCA_API_KEY_ID, APCA_API_SECRET_KEY), the hold-out is replayed. Creating a file named HALT in
trading/ACCOUNT stops all orders within a second.

Exit codes: 0 success; 1 the machine or the venue failed; 2 wrong flag, key or deployment; 3 no trader is running
(--status, --stop); 4 another trader uses the account; 5 HALTED; 130 or 143 stopped by Ctrl-C or kill."""


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = p.add_mutually_exclusive_group()
    what.add_argument("--once", action="store_true", help="trade one bar and exit")
    what.add_argument("--status", action="store_true", help="print the state of the running trader and exit")
    what.add_argument("--stop", action="store_true", help="stop the trader and keep its positions")
    what.add_argument("--flatten", action="store_true", help="sell all of the trader's coins now and halt it")
    what.add_argument(
        "--verify",
        type=Path,
        metavar="FILE",
        help="recompute the decisions and orders of a live journal from its bars and report the first difference",
    )
    p.add_argument(
        "--broker",
        choices=("alpaca", "replay"),
        help="where orders are sent (default: alpaca if its keys are set, otherwise replay)",
    )
    p.add_argument(
        "--deployments-dir",
        type=Path,
        metavar="DIR",
        help="folder that contains all deployments (default: deployments in the repository)",
    )
    p.add_argument(
        "--trading-dir",
        type=Path,
        metavar="DIR",
        help="folder that contains the journals and trader states (default: trading in the repository)",
    )
    p.add_argument(
        "--allow-unproven",
        action="store_true",
        help="in paper trading: accept a deployment for which a gate was waived",
    )
    p.add_argument("--resume", action="store_true", help="return to ACTIVE from REDUCING or HALTED")
    p.add_argument(
        "--adopt",
        action="store_true",
        help="treat the coins in the account as the trader's own and return to ACTIVE; a damaged journal is replaced "
        "by a new one",
    )
    add_replay(p.add_argument_group("replay"))
    add_venue(p.add_argument_group("alpaca"))
    add_limits(p.add_argument_group("limits, as fractions of equity"))
    return p


def add_replay(g: argparse._ArgumentGroup) -> None:
    """Add the flags of a replay."""
    g.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="dataset to replay (default: the dataset in data/ that contains the deployment's hold-out)",
    )
    g.add_argument("--all-bars", action="store_true", help="replay the whole dataset; the results are marked IN-SAMPLE")
    g.add_argument("--pace", type=factor, default=0.0, metavar="SECONDS", help="seconds between bars (default: 0)")
    g.add_argument(
        "--faults",
        metavar="KIND,...",
        help=f"venue faults to simulate, drawn at random with --seed: {', '.join(TRADING_FAULTS)} (default: none)",
    )
    g.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="seed for the simulated faults (default: 0)"
    )


def add_venue(g: argparse._ArgumentGroup) -> None:
    """Add the flags of Alpaca."""
    g.add_argument("--live", action="store_true", help="trade real money; also requires --live-url")
    g.add_argument("--live-url", metavar="URL", help=f"URL of the live account: {LIVE_URL}")
    g.add_argument(
        "--paper-url", default=PAPER_URL, metavar="URL", help=f"URL of the paper account (default: {PAPER_URL})"
    )
    g.add_argument("--data-url", metavar="URL", help="URL of the server for bars and quotes (default: Alpaca's server)")
    g.add_argument("--capital", type=Decimal, metavar="USD", help="amount of cash to trade with (default: all cash)")
    g.add_argument(
        "--send-at-once",
        action="store_true",
        help="send orders immediately after the decision; the simulator sends them at the next close",
    )
    g.add_argument(
        "--order-timeout",
        type=factor,
        default=20.0,
        metavar="SECONDS",
        help="time after which an open order is canceled (default: 20)",
    )
    g.add_argument(
        "--bar-timeout",
        type=factor,
        default=20.0,
        metavar="SECONDS",
        help="maximum wait for a coin's bar after its close (default: 20)",
    )
    g.add_argument(
        "--alert-command",
        metavar="CMD",
        help="command to run at each state change, with one line of text as its argument",
    )


def add_limits(g: argparse._ArgumentGroup) -> None:
    """Add the flags of the trading limits."""
    for name, (default, text) in TRADING_LIMITS.items():
        parse = whole_number(1) if isinstance(default, int) else factor
        metavar = "N" if isinstance(default, int) else "FRACTION"
        g.add_argument(f"--{name}", type=parse, default=default, metavar=metavar, help=f"{text} (default: {default:g})")


def request(args: argparse.Namespace) -> Request:
    """Return the flags as a checked request.

    Raises:
        UserError: if a flag is invalid or if flags contradict each other.
    """
    from market.errors import UserError
    from paper_trading.risk import Limits
    from paper_trading.stages import Request, check_addresses

    has_keys = any(all(os.environ.get(name) for name in names) for names in KEY_VARIABLES)
    broker = args.broker or ("alpaca" if has_keys and args.data_dir is None else "replay")
    if args.live != (args.live_url is not None):
        raise UserError(f"trading real money requires both --live and --live-url {LIVE_URL}")
    check_addresses(args.paper_url, args.live_url)
    if args.live and broker != "alpaca":
        raise UserError("--live requires --broker alpaca")
    if args.live and args.allow_unproven:
        raise UserError("--live and --allow-unproven cannot be combined: unproven policies trade on paper only")
    if broker == "alpaca" and (args.data_dir or args.all_bars or args.faults or args.pace):
        raise UserError("--data-dir, --all-bars, --pace and --faults apply only to a replay; add --broker replay")
    faults = tuple(kind for kind in (args.faults or "").split(",") if kind)
    unknown = sorted(set(faults) - set(TRADING_FAULTS))
    if unknown:
        raise UserError(f"--faults {unknown[0]}: unknown fault; choose from {', '.join(TRADING_FAULTS)}")
    if args.capital is not None and not (args.capital.is_finite() and args.capital > 0):
        raise UserError(f"--capital must be greater than 0; received {args.capital}")
    if args.max_drawdown > 1.0:
        raise UserError(
            f"--max-drawdown must be a fraction of at most 1, such as 0.25 for 25 %; received {args.max_drawdown:g}"
        )
    limits = {field.name: getattr(args, field.name) for field in fields(Limits)}
    data_dir = here(args.data_dir)
    return Request(
        deployments=here(args.deployments_dir) or home() / "deployments",
        trading=here(args.trading_dir) or home() / "trading", broker=broker, live_url=args.live_url,
        names_broker=args.broker is not None,
        paper_url=args.paper_url, data_url=args.data_url, data_dir=data_dir,
        data_roots=tuple(dict.fromkeys((home() / "data", Path.cwd() / "data"))), once=args.once,
        all_bars=args.all_bars, pace_s=args.pace, faults=faults, seed=args.seed, allow_unproven=args.allow_unproven,
        resumes=args.resume, adopts=args.adopt, capital=args.capital, sends_at_once=args.send_at_once,
        order_timeout_s=args.order_timeout, bar_timeout_s=args.bar_timeout, limits=Limits(**limits),
        alert_command=args.alert_command,
    )  # fmt: skip


def draw_page(folder: Path, day: date | None) -> Path:
    """Write the daily page for `day` (None: the day of the last bar) and return its path."""
    from paper_trading.day_page import write_day

    return write_day(folder, day)


def run(args: argparse.Namespace) -> int:
    """Trade, or run the action that the flags select, and return the exit code."""
    if args.status or args.stop:  # health checks call this every minute, so heavy imports are avoided
        from paper_trading import presence

        code, text = (presence.status if args.status else presence.stop)(here(args.trading_dir) or home() / "trading")
        print(text)
        return code
    wanted = request(args)
    from paper_trading import control, trader_program
    from paper_trading.broker import UnreachableError

    try:
        if args.verify is not None:
            code, text = control.verified(Path.cwd() / args.verify, wanted.deployments)
        elif args.flatten:
            code, text = control.flatten_now(wanted)
        else:
            return trader_program.trade(wanted, draw_page)
    except UnreachableError as error:
        raise ConnectionError(None, str(error), "the venue") from None
    print(text)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S",
                        stream=sys.stdout)  # fmt: skip
    return in_exit_code("paper_trade.py", lambda: run(args))
