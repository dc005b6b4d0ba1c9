"""Flags of all programs: one spelling and one metavar per concept, defaults in one style, and --help that is quick."""

import argparse
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from barwise.__main__ import COMMANDS
from tests.support.programs import options_of, parser_of

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "optuna", "pandas", "numpy", "sqlalchemy", "scipy", "matplotlib", "plotly", "numba", "talib", "rich",
         "msgspec"}  # fmt: skip

# What several programs need -> the only spelling of it, and its metavar.
SPELLINGS = {
    "study": ("--study-name", "NAME"),
    "database": ("--storage", "URL"),
    "results": ("--results-dir", "DIR"),
    "data": ("--data-dir", "DIR"),
    "device": ("--gpu", "N"),
    "coins": ("--tickers", "TICKER"),
    "bar length": ("--timeframe", None),
    "seed": ("--seed", "N"),
    "first bar": ("--start", "DATE"),
    "bars before": ("--end", "DATE"),
    "venue": ("--venue", "FILE"),
    "bars": ("--bars", "FILE"),
}
# Words of spellings that were given up, or that the field also uses, and that no program may bring back.
OTHER_SPELLINGS = {
    "--db", "--database", "--results", "--out-dir", "--data", "--dataset", "--device", "--cuda", "--symbols", "--coins",
    "--interval-s", "--random-seed", "--from", "--to", "--name", "--output",
}  # fmt: skip
OLD_SPELLINGS = {"--study": "--study-name"}  # still taken, by every program that has the new one
# The same flag of another meaning: a file here, a folder there; one number here, several there.
MAY_DIFFER = {"--out": {"FILE", "DIR"}, "--gpu": {"N", "N[,N...]"}, "--trial": {"N"}}

each_program = pytest.mark.parametrize("command", COMMANDS)


@each_program
def test_a_shared_flag_has_its_spelling(command):
    taken = {flag for action in options_of(command) for flag in action.option_strings}
    assert taken & OTHER_SPELLINGS == set()
    for old, new in OLD_SPELLINGS.items():
        assert (old in taken) == (new in taken), f"{old} is an old spelling of {new}, which users may still type"


@each_program
def test_a_folder_is_dir_a_file_is_file_and_a_path_says_which(command):
    for action in parser_of(command)._actions:
        if action.type is Path or getattr(action.type, "__name__", "") == "file_to_write":
            assert action.metavar in ("FILE", "DIR"), action.dest
        if action.option_strings and action.option_strings[0].endswith("-dir"):
            assert action.metavar == "DIR", action.dest


def test_a_flag_has_the_same_metavar_in_every_program():
    found: dict[str, set[str | None]] = {}
    for command in COMMANDS:
        for action in options_of(command):
            found.setdefault(action.option_strings[0], set()).add(action.metavar)
    several = {flag: metavars for flag, metavars in found.items() if len(metavars) > 1}
    assert several == {flag: metavars for flag, metavars in MAY_DIFFER.items() if flag in several}
    for concept, (flag, metavar) in SPELLINGS.items():
        assert found[flag] <= {metavar, *MAY_DIFFER.get(flag, ())}, concept


@each_program
def test_a_value_has_a_metavar_or_choices(command):
    """`--seed SEED` says nothing."""
    for action in options_of(command):
        if takes_a_value(action):
            assert action.metavar or action.choices, action.option_strings


def says_a_default_otherwise(text: str) -> bool:
    return text.count("(default: ") > 1 or "default" in text.replace("(default: ", "").replace("%(default)s", "")


@pytest.mark.parametrize("text", ["(default 3)", "none (default): stop", "3 by default", "(default: 1) (default: 1)"])
def test_another_style_is_found(text):
    assert says_a_default_otherwise(text)
    assert not says_a_default_otherwise("seconds (default: %(default)s)")


@each_program
def test_a_default_is_said_once_and_in_one_style(command):
    for action in filter(takes_a_value, options_of(command)):
        text = (action.help or "").replace("default for stationary", "").replace("(default: default)", "(default: )")
        assert not says_a_default_otherwise(text), (action.option_strings, text)
        if not action.required and action.default is not None:
            assert "(default: " in text, action.option_strings


def takes_a_value(action: argparse.Action) -> bool:
    return action.nargs != 0


@each_program
def test_the_default_that_is_said_is_the_default(command):
    for action in options_of(command):
        said = re.search(r"\(default: ([^;,)]+)", (action.help or "") % {"default": action.default})
        if said and isinstance(action.default, (int, float)) and not isinstance(action.default, bool):
            assert float(said.group(1)) == action.default, action.option_strings


@pytest.mark.parametrize("flag", ["--help", "--no-such-flag"])
def test_help_and_wrong_flags_load_nothing_heavy(flag):
    """Counted in modules and not in seconds; every program in one process, which has imported none of them before."""
    code = f"""
import contextlib, io, json, sys
from importlib import import_module
from barwise.__main__ import COMMANDS
ends, known = {{}}, set()
for command, (module, _) in COMMANDS.items():
    streams = io.StringIO()
    with contextlib.redirect_stdout(streams), contextlib.redirect_stderr(streams):
        try:
            import_module("barwise.commands." + module).main([{flag!r}])
        except SystemExit as end:
            code = end.code
    loaded = {{name.partition(".")[0] for name in sys.modules}} & {HEAVY!r}
    ends[command] = code, sorted(loaded - known)
    known |= loaded
print(json.dumps(ends))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    ends = json.loads(done.stdout)
    assert ends == {name: [0 if flag == "--help" else 2, []] for name in COMMANDS}


def test_every_command_is_in_the_table_and_its_script_exists():
    modules = {path.stem for path in (ROOT / "barwise" / "commands").glob("*.py")} - {"__init__"}
    assert {module for module, _ in COMMANDS.values()} == modules
    for command, (module, script) in COMMANDS.items():
        text = (ROOT / script).read_text()
        assert f"from barwise.commands.{module} import main" in text or f'"barwise", "{command}"' in text
        assert callable(importlib.import_module(f"barwise.commands.{module}").main)
