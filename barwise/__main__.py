"""The `barwise` command, which runs each program as a subcommand: `barwise optimize --n-trials 20`."""

from __future__ import annotations

import sys
from importlib import import_module

from barwise.arguments import USER_ERROR, exit_code

# command -> (module in barwise.commands, equivalent script in a checkout)
COMMANDS = {
    "optimize": ("optimize", "scripts/training/1_optimize_unified.py"),
    "dashboard": ("dashboard", "paper_trader_dashboard.py"),
    "web-dashboard": ("web_dashboard", "scripts/monitoring/web_dashboard.py"),
    "doctor": ("doctor", "scripts/setup/doctor.py"),
    "download-bars": ("download_bars", "scripts/data/download_bars.py"),
    "build-dataset": ("build_dataset", "scripts/data/build_dataset.py"),
    "make-sample": ("make_sample", "scripts/data/make_sample.py"),
    "inspect-dataset": ("inspect_dataset", "scripts/data/inspect_dataset.py"),
    "import-host-data": ("import_host_data", "scripts/data/import_host_data.py"),
    "refresh-venues": ("refresh_venues", "scripts/data/refresh_venues.py"),
    "validate": ("validate", "scripts/validation/2_validate.py"),
    "backtest": ("backtest_trial", "scripts/validation/4_backtest.py"),
    "pbo": ("pbo", "scripts/validation/5_pbo.py"),
    "lookahead": ("find_lookahead", "scripts/validation/lookahead.py"),
    "report": ("write_report", "scripts/validation/report.py"),
    "plot-study": ("plot_study", "scripts/training/plot_study.py"),
    "artifacts": ("clean_artifacts", "scripts/training/clean_artifacts.py"),
    "deploy": ("deploy_best", "scripts/deployment/auto_replace_best_5m.py"),
    "trade": ("paper_trade", "scripts/deployment/paper_trade.py"),
}


def usage() -> str:
    """Return the usage text: every command with its equivalent script."""
    lines = [f"  {name:<18} {script}" for name, (_, script) in COMMANDS.items()]
    return "\n".join(["usage: barwise COMMAND [flags]; barwise COMMAND --help lists the flags", "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.argv[0] = "barwise"
        code = exit_code("barwise", lambda: print(usage(), flush=True))
        return code if code or arguments else USER_ERROR
    name, *flags = arguments
    if name not in COMMANDS:
        sys.stderr.write(f"barwise: unknown command {name}; barwise --help lists all commands\n")
        return USER_ERROR
    sys.argv[0] = f"barwise {name}"
    return import_module(f"barwise.commands.{COMMANDS[name][0]}").main(flags)


if __name__ == "__main__":
    sys.exit(main())
