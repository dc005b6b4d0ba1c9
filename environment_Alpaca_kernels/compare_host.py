# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""A host's scalar class for `--compare`: import, construction, analysis of its dependencies, line tracing.

This module does not depend on a particular host. It reads the class's code (`ast`) and traces it (`sys.settrace`), and
never changes it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import io
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from . import drop_in

# Settings with the same name in the vectorized class.
KNOWN_CONFIG = {"price_array", "tech_array", "tickers", "min_order_qty", "qty_increment", "segments", "filled_array"}
KNOWN_ARGUMENTS = {
    "config", "env_params", "lookback", "gamma", "if_log", "seed", "start", "episode_bars", "tickers",
    *drop_in.HOST_NAMES,
}  # fmt: skip
SETTINGS = frozenset(field.name for field in fields(drop_in.EnvParams))
NAMED = ("initial_capital", "buy_cost_pct", "sell_cost_pct", "gamma")  # constructor arguments of both classes
NEEDED = ("price_array", "tech_array", "cash", "stocks", "total_asset")  # attributes that are compared or read
# Exceptions that a constructor or a step raises for unsupported arguments.
HOST_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Line = tuple[str, int]  # file, line number
Fact = tuple[str, str]  # ("self", attribute), ("config", key), ("env_params", key), ("argument", name) or a local name


class UsageError(Exception):
    """Raised if the comparison cannot start; the message says what to do."""


# ---------------------------------------------------------------------------------------------- finding the class
def load_module(path: Path) -> ModuleType:
    """Import a host's file, with its folder on the import path as in the host.

    Raises:
        UsageError: If the file does not exist, or one of its imports is missing.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; name the host's file with --env-file")
    name = f"_compared_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file; name the host's file with --env-file")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            spec.loader.exec_module(module)
    except ImportError as error:
        raise UsageError(f"{path.name} does not import: {error}. Run this in the host's Python environment") from error
    return module


def find_class(module: ModuleType, name: str | None) -> type:
    """Return the class `name` of the module, or its only environment.

    Raises:
        UsageError: If the class does not exist, or no name is given and several environments exist; the message lists
            them.
    """
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    known = {cls.__name__: cls for cls in own if hasattr(cls, "step") and hasattr(cls, "reset")}
    listed = f"{module.__file__} has these classes with step and reset: {', '.join(known) or 'none'}"
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name not in known:
        raise UsageError(f"{listed}; choose one with --class" if name is None else f"no class {name}: {listed}")
    return known[name]


# ---------------------------------------------------------------------------------------------- reading the class
@dataclass
class Reads:
    """Dependencies of a class's statements, derived from its source."""

    needs: dict[Fact, set[Fact]] = field(default_factory=dict)  # assigned name -> names that its value depends on
    of_method: dict[str, set[Fact]] = field(default_factory=dict)

    def behind(self, facts: Iterable[Fact]) -> set[Fact]:
        """Return `facts` and everything from which they were computed."""
        found, waiting = set(), list(facts)
        while waiting:
            fact = waiting.pop()
            if fact not in found:
                found.add(fact)
                waiting += self.needs.get(fact, ())
        return found


class _Reader(ast.NodeVisitor):
    """Collects the names that one method reads and assigns."""

    def __init__(self, reads: Reads, function: ast.FunctionDef, is_constructor: bool) -> None:
        names = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
        self.reads, self.method, self.conditions = reads, function.name, [set[Fact]()]
        self.me = names[0] if names else ""
        self.arguments = set(names[1:]) if is_constructor else set()
        self.seen = reads.of_method.setdefault(function.name, set())
        for statement in function.body:
            self.visit(statement)

    def facts(self, node: ast.AST | None) -> set[Fact]:
        """Return everything read within an expression."""
        found = {self._fact(part) for part in ast.walk(node)} if node is not None else set()
        return {fact for fact in found if fact is not None}

    def _fact(self, node: ast.AST) -> Fact | None:
        match node:
            case ast.Subscript(value=mapping, slice=ast.Constant(value=str(key))):
                return self._entry(mapping, key)
            case ast.Call(func=ast.Attribute(value=mapping, attr="get"), args=[ast.Constant(value=str(key)), *_]):
                return self._entry(mapping, key)
            case ast.Call(func=ast.Name(id="hasattr" | "getattr"), args=[ast.Name(id=me), ast.Constant(value=key), *_]):
                return ("self", str(key)) if me == self.me else None
            case ast.Attribute(value=ast.Name(id=self.me), attr=name):
                return "self", name
            case ast.Name(id=name) if name in self.arguments:
                return "argument", name
            case ast.Name(id=name) if name != self.me:
                return f"{self.method}()", name
        return None

    def _entry(self, mapping: ast.AST, key: str) -> Fact | None:
        name = getattr(mapping, "id", getattr(mapping, "attr", ""))
        return (name, key) if name in ("config", "env_params") else None

    def visit(self, node: ast.AST) -> None:
        """Process a statement. An assignment also depends on the conditions around it."""
        match node:
            case ast.Assign(targets=targets, value=value):
                self._assign(targets, self.facts(value))
            case ast.AugAssign(target=target, value=value) | ast.AnnAssign(target=target, value=value):
                self._assign([target], self.facts(value))
            case ast.For(target=target, iter=value):
                self._assign([target], self.facts(value))
                self._inside(node, value)
            case ast.If(test=value) | ast.While(test=value):
                self._inside(node, value)
            case ast.expr():
                self.seen |= self.facts(node)
            case _:
                self.generic_visit(node)

    def _inside(self, node: ast.If | ast.While | ast.For, condition: ast.expr) -> None:
        facts = self.facts(condition)
        self.seen |= facts
        self.conditions.append(self.conditions[-1] | facts)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)
        self.conditions.pop()

    def _assign(self, targets: Iterable[ast.expr], sources: set[Fact]) -> None:
        self.seen |= sources
        for target in targets:
            for fact in self.facts(target):
                self.reads.needs.setdefault(fact, set()).update(sources | self.conditions[-1])


def _tree(function: FunctionType) -> ast.FunctionDef | None:
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError):  # no source, or a lambda within an expression
        return None
    return node if isinstance(node, ast.FunctionDef) else None


@dataclass(frozen=True)
class HostClass:
    """A scalar environment class, its code, and its construction."""

    cls: type
    rules: str | None = None  # None detects the rules
    given: Mapping[str, Any] = field(default_factory=dict)  # settings that the user has fixed
    given_config: Mapping[str, Any] = field(default_factory=dict)  # config entries that the user has fixed

    @cached_property
    def methods(self) -> dict[str, list[FunctionType]]:
        """Functions by name, including inherited functions. A property is represented by its getter."""
        found: dict[str, list[FunctionType]] = {}
        for base in self.cls.__mro__:
            for name, value in vars(base).items():
                function = getattr(value, "fget", getattr(value, "__func__", value))
                if isinstance(function, FunctionType):
                    found.setdefault(name, []).append(function)
        return found

    @cached_property
    def trees(self) -> dict[FunctionType, ast.FunctionDef]:
        """Syntax trees of all methods with available source."""
        trees = {function: _tree(function) for functions in self.methods.values() for function in functions}
        return {function: tree for function, tree in trees.items() if tree is not None}

    @cached_property
    def reads(self) -> Reads:
        """Names that the code of the class reads."""
        reads = Reads()
        for tree in self.trees.values():
            _Reader(reads, tree, tree.name == "__init__")
        return reads

    @cached_property
    def stepped(self) -> tuple[FunctionType, ...]:
        """Names of `step` and of the methods that it calls, directly or indirectly."""
        found: list[FunctionType] = []
        waiting = self.methods["step"][:1]
        while waiting:
            function = waiting.pop()
            if function in found or function not in self.trees:
                continue
            found.append(function)
            used = {name for kind, name in self.reads.of_method[function.__name__] if kind == "self"}
            waiting += [self.methods[name][0] for name in used if name in self.methods]
            if "super" in function.__code__.co_names:
                waiting += self.methods[function.__name__][1:]
        return tuple(found)

    @cached_property
    def step_needs(self) -> set[Fact]:
        """Dependencies of a step, traced back to constructor arguments and the keys that it reads."""
        reads = self.reads.of_method
        return self.reads.behind(fact for function in self.stepped for fact in reads[function.__name__])

    @cached_property
    def signature(self) -> dict[str, inspect.Parameter]:
        """Parameters of the constructor by name."""
        return dict(inspect.signature(self.cls).parameters)

    def keys(self, mapping: str) -> set[str]:
        """Return the keys of "config" or "env_params" that the class reads."""
        return {key for facts in self.reads.of_method.values() for kind, key in facts if kind == mapping}

    @property
    def batch_rules(self) -> str:
        """Return the rule set that the vectorized class runs.

        Raises:
            UsageError: If no rule set is given and the class is not recognized.
        """
        rules = self.rules or drop_in.rules_of(self.cls)
        if rules is None:
            raise UsageError(f"{self.cls.__name__} is not recognized; set --rules to one of {', '.join(drop_in.RULES)}")
        return rules

    @cached_property
    def is_ours(self) -> bool:
        """Return True for the scalar environment of this simulator's own repository, which has the same settings."""
        return "EnvParams" in drop_in.words_of(self.cls)[0]

    @property
    def not_simulated(self) -> list[str]:
        """Return the names of a step's dependencies that the vectorized class does not support."""
        known = {"config": KNOWN_CONFIG, "env_params": SETTINGS, "argument": KNOWN_ARGUMENTS}
        unknown = [(kind, name) for kind, name in sorted(self.step_needs) if name not in known.get(kind, {name})]
        shown = {"config": 'config["{}"]', "env_params": 'env_params["{}"]', "argument": "argument {}"}
        return [shown[kind].format(name) for kind, name in unknown]

    def knows(self, name: str) -> bool:
        """Return True if a setting exists: a constructor argument, an env_params key, or an attribute set later."""
        if self.is_ours:
            return name in self.signature or name in (*SETTINGS, "rules", "max_position_pct")
        is_attribute = name in drop_in.HOST_NAMES["max_position_weight"] and ("self", name) in self.step_needs
        return name in self.signature or name in self.keys("env_params") or is_attribute

    def build(self, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
        """Build a new object.

        A setting becomes a constructor argument if possible, otherwise an attribute, otherwise an env_params key.

        Raises:
            UsageError: If the constructor fails; the message says which arguments it requires.
        """
        arguments = {name: value for name, value in settings.items() if name in self.signature}
        later = {name: value for name, value in settings.items() if name in drop_in.HOST_NAMES["max_position_weight"]}
        if "env_params" in self.signature:
            arguments["env_params"] = {k: v for k, v in settings.items() if k not in arguments and k not in later}
        if self.is_ours:
            arguments["env_params"] |= dict(zip(["max_position_weight"], later.values(), strict=False))
            later = {}
        try:
            env = self.cls({**config, **self.given_config}, **arguments)
        except HOST_FAULTS as error:
            raise UsageError(self._refusal(error)) from error
        missing = [name for name in NEEDED if not hasattr(env, name)]
        if missing:
            raise UsageError(f"{self.cls.__name__} has no attribute {', '.join(missing)}, which the comparison reads")
        for name, value in later.items():
            setattr(env, name, value)
        return env

    def batch(self, config: Mapping[str, Any], settings: Mapping[str, Any], n_envs: int) -> Any:
        """Return a vectorized environment with the same settings, built as a user of this host would build it.

        Raises:
            UsageError: If the rules are not recognized, or the vectorized class rejects the settings; the message says
                why.
        """
        try:
            return self._batch(config, settings, n_envs)
        except ValueError as error:
            raise UsageError(f"the vectorized class cannot be built: {error}") from error

    def _batch(self, config: Mapping[str, Any], settings: Mapping[str, Any], n_envs: int) -> Any:
        options = {"as_numpy": False, "autoreset": False, "start": "first", "gpu_id": -1}
        if self.is_ours:
            return drop_in.from_scalar_env(self.build(config, settings), n_envs, **options)
        every = {**config, **self.given_config}
        inherited, limits = drop_in.settings_of_host(self.cls, every)
        params = {name: value for name, value in settings.items() if name in SETTINGS and name not in NAMED}
        cap = [settings[name] for name in drop_in.HOST_NAMES["max_position_weight"] if name in settings]
        return drop_in.VectorizedCryptoEnvAlpaca(
            limits | {name: value for name, value in every.items() if name in KNOWN_CONFIG},
            {**inherited, "rules": self.batch_rules, **params} | ({"max_position_weight": cap[0]} if cap else {}),
            n_envs, **{name: settings[name] for name in NAMED if name in settings}, **options)  # fmt: skip

    def _refusal(self, error: Exception) -> str:
        wanted = ", ".join(str(parameter) for parameter in self.signature.values())
        keys = ", ".join(sorted(self.keys("config"))), ", ".join(sorted(self.keys("env_params")))
        return (
            f"{self.cls.__name__} cannot be built: {type(error).__name__}: {error}. Its constructor takes ({wanted}); "
            f"it reads config[{keys[0]}] and env_params[{keys[1]}]. Supply what is missing with --set key=value, or as "
            "an array of the --data file"
        )


# ---------------------------------------------------------------------------------------------- watching its lines
def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def code_lines(function: FunctionType, tree: ast.FunctionDef) -> set[Line]:
    """Return the lines of a function's body that contain code, without docstring and signature."""
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    if not body:
        return set()
    first = function.__code__.co_firstlineno + body[0].lineno - tree_first_line(tree)
    numbers = {line for code in _nested(function.__code__) for _, _, line in code.co_lines()}
    return {(function.__code__.co_filename, line) for line in numbers if line is not None and line >= first}


def tree_first_line(tree: ast.FunctionDef) -> int:
    """Return the line of a function's first decorator, or of its `def`."""
    return min([tree.lineno, *(decorator.lineno for decorator in tree.decorator_list)])


class LineWatch:
    """Records which lines of a class's step run, and suppresses the output of those lines."""

    def __init__(self, host: HostClass) -> None:
        codes = [code for function in host.stepped for code in _nested(function.__code__)]
        self.lines = set[Line]().union(*(code_lines(function, host.trees[function]) for function in host.stepped))
        self.reached: set[Line] = set()
        self._numbers: dict[str, set[int]] = {code.co_filename: set() for code in codes}
        self._local = {id(code): self._watcher(self._numbers[code.co_filename]) for code in codes}
        self._codes = codes  # keeps their ids valid

    @staticmethod
    def _watcher(numbers: set[int]) -> Callable[[FrameType, str, Any], Any]:
        add = numbers.add

        def on_event(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                add(frame.f_lineno)
            return on_event

        return on_event

    def _on_call(self, frame: FrameType, _: str, __: Any) -> Any:
        return self._local.get(id(frame.f_code))

    def run(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, set[Line]]:
        """Call `function` and return its result; record the lines that ran."""
        for numbers in self._numbers.values():
            numbers.clear()
        before = sys.gettrace()
        with contextlib.redirect_stdout(io.StringIO()):
            sys.settrace(self._on_call)
            try:
                result = function(*arguments)
            finally:
                sys.settrace(before)
        ran = {(name, number) for name, numbers in self._numbers.items() for number in numbers}
        self.reached |= ran
        return result, ran

    @property
    def unreached(self) -> list[Line]:
        """Return the lines of code that never ran, in order."""
        return sorted(self.lines - self.reached)


def source_lines(lines: Sequence[Line]) -> list[str]:
    """Format lines as `file:line: source` for a terminal."""
    return [f"{Path(name).name}:{number}: {linecache.getline(name, number).rstrip()}" for name, number in lines]
