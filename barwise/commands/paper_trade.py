"""Trade the deployed policy: on paper, on recorded bars, or, when two flags say so, with real money."""

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
The policy in deployments/current sees every bar as in training, and its orders are the simulator's own. Everything is
in trading/ACCOUNT/journal.jsonl; python paper_trader_dashboard.py shows it. docs/trading.md explains states and limits.

Without keys (APCA_API_KEY_ID, APCA_API_SECRET_KEY) the bars that were held out are replayed. A file called HALT in
trading/ACCOUNT stops all orders within a second.

Exit codes: 0 done; 1 the machine or the venue failed; 2 a bad flag, key or deployment; 3 --status or --stop: no trader
runs; 4 another trader has the account; 5 HALTED; 130 or 143 when stopped by Ctrl-C or kill."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = p.add_mutually_exclusive_group()
    what.add_argument("--once", action="store_true", help="trade one bar, then end")
    what.add_argument("--status", action="store_true", help="say what trades, and end")
    what.add_argument("--stop", action="store_true", help="stop the trader; positions stay")
    what.add_argument("--flatten", action="store_true", help="sell all coins of the trader now, and halt it")
    what.add_argument(
        "--verify",
        type=Path,
        metavar="FILE",
        help="make the decisions and orders of a live journal again from its bars; names the first difference",
    )
    p.add_argument(
        "--broker", choices=("alpaca", "replay"), help="(default: alpaca where its keys are set, else replay)"
    )
    p.add_argument("--deployments-dir", type=Path, metavar="DIR", help="(default: deployments in the repository)")
    p.add_argument(
        "--trading-dir", type=Path, metavar="DIR", help="journals and states (default: trading in the repository)"
    )
    p.add_argument("--allow-unproven", action="store_true", help="paper: take a deployment that waived a gate")
    p.add_argument("--resume", action="store_true", help="be ACTIVE again after REDUCING or HALTED")
    p.add_argument(
        "--adopt",
        action="store_true",
        help="take the coins in the account for the trader's own, and be ACTIVE; begins a new journal in place of a "
        "damaged one",
    )
    add_replay(p.add_argument_group("replay"))
    add_venue(p.add_argument_group("alpaca"))
    add_limits(p.add_argument_group("limits, as shares of the account's value"))
    return p


def add_replay(g: argparse._ArgumentGroup) -> None:
    """Flags of recorded bars."""
    g.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="data set to replay (default: the one in data whose bars were held out from the deployment)",
    )
    g.add_argument("--all-bars", action="store_true", help="replay the whole data set, marked IN-SAMPLE")
    g.add_argument("--pace", type=factor, default=0.0, metavar="SECONDS", help="between two bars (default: 0)")
    g.add_argument(
        "--faults",
        metavar="KIND,...",
        help=f"faults of a venue, drawn by --seed: {', '.join(TRADING_FAULTS)} (default: none)",
    )
    g.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the faults (default: 0)")


def add_venue(g: argparse._ArgumentGroup) -> None:
    """Flags of Alpaca."""
    g.add_argument("--live", action="store_true", help="trade real money; needs --live-url, too")
    g.add_argument("--live-url", metavar="URL", help=f"address of the live account: {LIVE_URL}")
    g.add_argument("--paper-url", default=PAPER_URL, metavar="URL", help=f"(default: {PAPER_URL})")
    g.add_argument("--data-url", metavar="URL", help="of bars and quotes (default: Alpaca's)")
    g.add_argument("--capital", type=Decimal, metavar="USD", help="trade with so much of the cash (default: all)")
    g.add_argument(
        "--send-at-once",
        action="store_true",
        help="send an order at the bar of its decision, not at the next close as the simulator does",
    )
    g.add_argument(
        "--order-timeout",
        type=factor,
        default=20.0,
        metavar="SECONDS",
        help="an order that is not over by then is cancelled (default: 20)",
    )
    g.add_argument(
        "--bar-timeout",
        type=factor,
        default=20.0,
        metavar="SECONDS",
        help="how long after its close a coin's bar is waited for (default: 20)",
    )
    g.add_argument("--alert-command", metavar="CMD", help="run with one line of text when the state changes")


def add_limits(g: argparse._ArgumentGroup) -> None:
    """Flags of the limits."""
    for name, (default, text) in TRADING_LIMITS.items():
        parse = whole_number(1) if isinstance(default, int) else factor
        metavar = "N" if isinstance(default, int) else "FRACTION"
        g.add_argument(f"--{name}", type=parse, default=default, metavar=metavar, help=f"{text} (default: {default:g})")


def request(args: argparse.Namespace) -> Request:
    """The flags, checked.

    Raises:
        UserError: flags that contradict each other.
    """
    from market.errors import UserError
    from paper_trading.risk import Limits
    from paper_trading.stages import Request, check_addresses

    has_keys = any(all(os.environ.get(name) for name in names) for names in KEY_VARIABLES)
    broker = args.broker or ("alpaca" if has_keys and args.data_dir is None else "replay")
    if args.live != (args.live_url is not None):
        raise UserError(f"real money needs both --live and --live-url {LIVE_URL}; one alone trades nothing")
    check_addresses(args.paper_url, args.live_url)
    if args.live and broker != "alpaca":
        raise UserError("--live needs --broker alpaca")
    if args.live and args.allow_unproven:
        raise UserError("--live takes no --allow-unproven: an unproven policy trades on paper only")
    if broker == "alpaca" and (args.data_dir or args.all_bars or args.faults or args.pace):
        raise UserError("--data-dir, --all-bars, --pace and --faults are of a replay; --broker replay asks for one")
    faults = tuple(kind for kind in (args.faults or "").split(",") if kind)
    unknown = sorted(set(faults) - set(TRADING_FAULTS))
    if unknown:
        raise UserError(f"--faults {unknown[0]}: no such fault; known are {', '.join(TRADING_FAULTS)}")
    if args.capital is not None and not (args.capital.is_finite() and args.capital > 0):
        raise UserError(f"--capital {args.capital}: must be an amount above 0")
    if args.max_drawdown > 1.0:
        raise UserError(
            f"--max-drawdown {args.max_drawdown:g}: is a fraction, 0.25 means 25 %; no account falls further"
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
    """The page of a day, None that of the last bar; what draws it is loaded when it is drawn."""
    from paper_trading.day_page import write_day

    return write_day(folder, day)


def run(args: argparse.Namespace) -> int:
    """Trade, or one of the other things."""
    if args.status or args.stop:  # asked every minute by a health check, so that nothing heavy is loaded
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
    """Parse, run, report."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S",
                        stream=sys.stdout)  # fmt: skip
    return in_exit_code("paper_trade.py", lambda: run(args))
