"""Verify a dataset folder, print a summary of it, and draw its prices and features."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from barwise.arguments import exit_code
from market.errors import DatasetError

if TYPE_CHECKING:
    from market.dataset import Dataset


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} For a damaged or edited dataset, the program prints the error and exits with code 2."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="dataset folder, for example data/5m")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="PNG file for the plot of prices and features (default: DIR.png next to the folder)",
    )
    parser.add_argument("--no-picture", action="store_true", help="print the summary without drawing a plot")
    return parser.parse_args(argv)


def picture_path(args: argparse.Namespace) -> Path | None:
    """Return the path of the plot, or None with --no-picture.

    Raises:
        DatasetError: if --out is not a PNG file in an existing folder, or is inside the dataset folder.
    """
    if args.no_picture:
        return None
    folder = args.folder.resolve()
    out = args.out if args.out is not None else folder.with_name(f"{folder.name}.png")
    if out.suffix != ".png":
        raise DatasetError(f"--out {out}: the file name must end in .png")
    if out.resolve().parent == folder:
        raise DatasetError(f"--out {out}: must be outside the dataset folder")
    if not out.resolve().parent.is_dir():
        raise DatasetError(f"--out {out}: folder {out.parent} does not exist; create it first")
    if out.is_dir():
        raise DatasetError(f"--out {out}: is a folder; give the path of a file")
    return out


def described(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Yield the lines of the summary, with a heading for each section."""
    from market.describe import feature_lines, price_lines, quality_lines, segment_lines, venue_lines

    sizes = [entry.stat().st_size for entry in folder.iterdir() if entry.is_file()]
    yield dataset.label
    yield f"sha256 {dataset.sha256}"
    yield dataset.standing.line
    yield f"{folder}: {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB"
    parts = {
        "bar quality": quality_lines(dataset),
        "segments": segment_lines(dataset),
        "venue": venue_lines(dataset),
        "prices": price_lines(dataset),
        f"features: {len(dataset.feature_names)} columns of feature set {dataset.feature_set!r}, warm-up "
        f"{dataset.warmup_bars} bars": feature_lines(dataset),
    }
    for heading, lines in parts.items():
        yield f"\n{heading}"
        yield from lines


def inspect(args: argparse.Namespace) -> None:
    """Verify the dataset, print its summary and draw its plot."""
    from market.dataset import load_dataset
    from market.files import write_whole
    from market.pictures import dataset_picture

    out = picture_path(args)
    dataset = load_dataset(args.folder)
    for line in described(dataset, args.folder):
        print(line)
    if out is not None:
        write_whole(out, dataset_picture(dataset))
        print(f"\nwrote {out}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_arguments(argv)
    return exit_code("inspect_dataset.py", lambda: inspect(args))
