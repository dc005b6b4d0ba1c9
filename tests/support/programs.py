"""The argument parsers of all programs, without running one."""

import argparse
from functools import cache
from importlib import import_module
from unittest.mock import patch

from barwise.__main__ import COMMANDS


class _CaughtError(Exception):
    """Carries the parser out of `main`."""


def _catch(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
    raise _CaughtError(parser)


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command builds before it parses anything."""
    main = import_module(f"barwise.commands.{COMMANDS[command][0]}").main
    with patch.object(argparse.ArgumentParser, "parse_args", _catch):
        try:
            main([])
        except _CaughtError as caught:
            return caught.args[0]
    raise AssertionError(f"{command} does not parse its arguments")


def options_of(command: str) -> list[argparse.Action]:
    """Its flags, without --help."""
    return [action for action in parser_of(command)._actions if action.option_strings and action.dest != "help"]
