"""Read Alpaca's order rules (smallest orders, increments) and write them with today's date, saying what changed."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from barwise.arguments import exit_code
from market.defaults import KEY_VARIABLES, PAPER_URL
from market.errors import VenueError

if TYPE_CHECKING:
    from market.venues import Venue


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    variables = ", or ".join(" and ".join(names) for names in KEY_VARIABLES)
    parser = argparse.ArgumentParser(
        description=f"{__doc__} Keys are read from the environment ({variables}) and sent to the paper account's "
        f"server ({PAPER_URL}) only; no order is placed. That server does not tell fees and the smallest notional: "
        "they are kept from the file that is replaced, or from the built-in table.",
        epilog="The file has no effect by itself: pass it to build_dataset.py or make_sample.py as --venue FILE.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="for example data/venues/alpaca.json; an older table there is compared with and replaced, anything else "
        "is refused",
    )
    return parser.parse_args(argv)


def refresh(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    from market.sources.assets import fetch_assets, keys_of, venue_of_assets
    from market.venues import changes, save_venue

    known, named = known_rules(args.out)
    keys = keys_of(os.environ)
    today = datetime.now(UTC).date().isoformat()
    source = f"{PAPER_URL}/v2/assets?asset_class=crypto"
    venue, left_out = venue_of_assets(fetch_assets(keys, PAPER_URL), known, today, source)
    save_venue(venue, args.out)
    for line in left_out:
        print(f"  left out: {line}")
    moved = changes(known, venue)
    print(f"  against {named}, {known.label}: {len(moved) or 'no'} rules changed")
    for line in moved:
        print(f"  {line}")
    print(f"wrote {args.out}: {len(venue.rules)} rules, {venue.label}; fees of {venue.fees_as_of}, not read")


def known_rules(path: Path) -> tuple[Venue, str]:
    """The table to compare with, and what it is called: the file's, or the built-in one where there is none."""
    from market.venues import ALPACA, load_venue

    if not path.exists():
        return ALPACA, "the built-in table"
    try:
        known = load_venue(path)
    except VenueError as error:
        raise VenueError(f"--out {str(error).partition(';')[0]}; move it away, or choose another file") from error
    if known.name != ALPACA.name:
        raise VenueError(f"--out {path}: holds the rules of {known.name}; choose another file")
    return known, str(path)


def main(argv: list[str] | None = None) -> int:
    """Parse, read, report."""
    args = parse_arguments(argv)
    return exit_code("refresh_venues.py", lambda: refresh(args))
