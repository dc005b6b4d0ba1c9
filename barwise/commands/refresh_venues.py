"""Download Alpaca's order rules (minimum orders and increments), save them with today's date, and print the changes."""

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
    """Parse the command line."""
    variables = ", or ".join(" and ".join(names) for names in KEY_VARIABLES)
    parser = argparse.ArgumentParser(
        description=f"{__doc__} API keys are read from the environment ({variables}) and sent only to the paper "
        f"account's server ({PAPER_URL}). No order is placed. The server does not report fees or the minimum "
        "notional, so these are copied from the file being replaced or from the built-in table.",
        epilog="To use the file, pass it to build_dataset.py or make_sample.py with --venue FILE.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON file to write, for example data/venues/alpaca.json; an existing table of Alpaca's rules is compared "
        "and replaced; any other existing file is rejected",
    )
    return parser.parse_args(argv)


def refresh(args: argparse.Namespace) -> None:
    """Download the order rules, write them and print the changes."""
    from market.sources.assets import fetch_assets, keys_of, venue_of_assets
    from market.venues import changes, save_venue

    known, named = known_rules(args.out)
    keys = keys_of(os.environ)
    today = datetime.now(UTC).date().isoformat()
    source = f"{PAPER_URL}/v2/assets?asset_class=crypto"
    venue, left_out = venue_of_assets(fetch_assets(keys, PAPER_URL), known, today, source)
    save_venue(venue, args.out)
    for line in left_out:
        print(f"  omitted: {line}")
    moved = changes(known, venue)
    print(f"  compared with {named}, {known.label}: {len(moved) or 'no'} rules changed")
    for line in moved:
        print(f"  {line}")
    print(f"wrote {args.out}: {len(venue.rules)} rules, {venue.label}; fees as of {venue.fees_as_of}, not downloaded")


def known_rules(path: Path) -> tuple[Venue, str]:
    """Return the table in the file and the file's name, or the built-in table if the file does not exist.

    Raises:
        VenueError: if the file is not a table of Alpaca's rules.
    """
    from market.venues import ALPACA, load_venue

    if not path.exists():
        return ALPACA, "the built-in table"
    try:
        known = load_venue(path)
    except VenueError as error:
        raise VenueError(
            f"--out {str(error).partition(';')[0]}; move it elsewhere, or choose a different file"
        ) from error
    if known.name != ALPACA.name:
        raise VenueError(f"--out {path}: contains the rules of {known.name}; choose a different file")
    return known, str(path)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_arguments(argv)
    return exit_code("refresh_venues.py", lambda: refresh(args))
