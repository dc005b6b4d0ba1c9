"""Print and draw what a dataset folder holds, after checking everything about it."""

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
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} A damaged or edited dataset is one line that says what is wrong, and exit code 2."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="dataset folder, for example data/5m")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="picture of prices and features, .png (default: DIR.png, beside the folder)",
    )
    parser.add_argument("--no-picture", action="store_true", help="print only")
    return parser.parse_args(argv)


def picture_path(args: argparse.Namespace) -> Path | None:
    """Where the picture goes; never into a dataset folder, which holds nothing but its own files."""
    if args.no_picture:
        return None
    folder = args.folder.resolve()
    out = args.out if args.out is not None else folder.with_name(f"{folder.name}.png")
    if out.suffix != ".png":
        raise DatasetError(f"--out {out}: expected a name that ends in .png")
    if out.resolve().parent == folder:
        raise DatasetError(f"--out {out}: lies inside the dataset folder; choose a place outside it")
    if not out.resolve().parent.is_dir():
        raise DatasetError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise DatasetError(f"--out {out}: is a folder; name a file")
    return out


def described(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Every line of the report, under a heading for each part."""
    from market.describe import feature_lines, price_lines, quality_lines, segment_lines, venue_lines

    sizes = [entry.stat().st_size for entry in folder.iterdir() if entry.is_file()]
    yield dataset.label
    yield f"sha256 {dataset.sha256}"
    yield dataset.standing.line
    yield f"{folder}: {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB"
    parts = {
        "quality of the bars": quality_lines(dataset),
        "bars used": segment_lines(dataset),
        "venue": venue_lines(dataset),
        "prices": price_lines(dataset),
        f"features: {len(dataset.feature_names)} columns of the set {dataset.feature_set!r}, warm-up "
        f"{dataset.warmup_bars} bars": feature_lines(dataset),
    }
    for heading, lines in parts.items():
        yield f"\n{heading}"
        yield from lines


def inspect(args: argparse.Namespace) -> None:
    """Do what the command line says."""
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
    """Parse, check, print, draw."""
    args = parse_arguments(argv)
    return exit_code("inspect_dataset.py", lambda: inspect(args))
