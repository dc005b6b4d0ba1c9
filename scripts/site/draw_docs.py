"""Draw the pictures in docs/img of a study: its plot, the terminal dashboard and the web dashboard.

Run it while two workers run the study, so that the terminal dashboard has something to show.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from io import StringIO
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.site.check_pages import QUIET, Browser, dashboard  # noqa: E402

from barwise.arguments import add_study, storage_of  # noqa: E402

COLUMNS, LINES = 160, 38
WIDTH, HEIGHT, TERMINAL_WIDTH = 1100, 780, 1300  # pixels
TO_PICTURES = "document.querySelector('main img')?.closest('.MuiCard-root')?.scrollIntoView({block: 'end'})"
DRAWN_HEIGHT = "Math.ceil(document.querySelector('svg').getBoundingClientRect().height)"


def terminal(args: argparse.Namespace) -> str:
    """Return the terminal dashboard as SVG. Rich is imported here because its import draws random numbers."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI

    from train.watch.program import Dashboard

    console = Console(record=True, width=COLUMNS, height=LINES, file=StringIO(), force_terminal=True, highlight=False)
    console.print(Dashboard(storage_of(args), args.study_name, args.log, args.results_dir).frame())
    return console.export_svg(title="paper_trader_dashboard.py --training", theme=MONOKAI)


def show(browser: Browser, url: str, width: int, height: int) -> None:
    """Open a page in a window of this size."""
    browser.visit("light")
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.open(url)
    browser.evaluate(QUIET)


def main() -> int:
    """Draw the three pictures."""
    import optuna

    from train.report.picture import plot_study
    from train.study.eligibility import best_trial

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_study(parser, is_required=True)
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help="log of the study's workers")
    parser.add_argument("--browser", default="chromium", help="the chromium program (default: chromium)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img", metavar="DIR", help="default: docs/img")
    args = parser.parse_args()
    url = storage_of(args)
    study = optuna.load_study(study_name=args.study_name, storage=url.render_as_string(hide_password=False))
    best = best_trial(study)
    if best is None:
        parser.error(f"study {args.study_name} has no best trial yet")
    plot_study(study, args.results_dir / args.study_name, args.out / "study.png")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        drawing = Path(scratch) / "terminal.html"
        drawing.write_text(f"<body style='margin:0'><style>svg{{width:{TERMINAL_WIDTH}px}}</style>{terminal(args)}")
        browser = Browser(args.browser, str(Path(scratch) / "profile"))
        show(browser, drawing.as_uri(), TERMINAL_WIDTH, HEIGHT)
        show(browser, drawing.as_uri(), TERMINAL_WIDTH, browser.evaluate(DRAWN_HEIGHT))
        browser.screenshot(args.out / "dashboard.png")
        with dashboard(url, args.results_dir / "artifacts") as pages:
            show(browser, f"{pages}/studies/{study._study_id}/trials?numbers={best.number}", WIDTH, HEIGHT)
            browser.evaluate(TO_PICTURES)
            browser.evaluate(QUIET)
            browser.screenshot(args.out / "web_dashboard.png")
        browser.process.terminate()
        browser.process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
