"""The codec of what a study leaves behind: what is written is read back, and what is wrong is named."""

from __future__ import annotations

import ast
import json
import math
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from tests.support.fabricated_study import figures, holdout_score, identity
from tests.support.stored_names import unpack_earlier
from train.records import stored
from train.records.account import Metrics
from train.records.attributes import identity_in, splits_in
from train.records.errors import StudyError
from train.records.record_files import decode, plain, read_record, with_null, write_json
from train.records.stored import (
    DeploymentFacts,
    HoldoutScore,
    SplitFigures,
    SplitResult,
    StudyFile,
    TrialSettings,
    WorkerIdentity,
)

ROOT = Path(__file__).resolve().parents[2]
ATOMS = {
    str: st.text(max_size=5),
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    types.NoneType: st.none(),
    UnsetType: st.just(UNSET),
    Any: st.integers() | st.lists(st.text(max_size=3) | st.none(), max_size=2),
}


def values(hint: Any) -> st.SearchStrategy:
    """Values of a field; every field of a record is drawn."""
    kind, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(hint, **{field.name: values(hints[field.name]) for field in fields(hint)})
    if kind is tuple and inner[-1] is ...:
        return st.lists(values(inner[0]), max_size=2).map(tuple)
    if kind is tuple:
        return st.tuples(*map(values, inner))
    if kind is dict:
        return st.dictionaries(st.text(max_size=5), values(inner[1]), max_size=2)
    if kind in (Union, types.UnionType):
        return st.one_of(*map(values, inner))
    return ATOMS[hint]


@pytest.mark.parametrize(
    "type_", [TrialSettings, HoldoutScore, DeploymentFacts, StudyFile, SplitResult, WorkerIdentity]
)
@given(data=st.data())
def test_a_record_that_was_written_is_read_back_equal(tmp_path_factory, type_, data):
    record, path = data.draw(values(type_)), tmp_path_factory.getbasetemp() / "record.json"
    write_json(path, record)
    assert read_record(path, type_) == record


def test_null_is_an_undefined_figure_of_an_account_and_what_a_file_lacks_stays_absent():
    undefined = SplitFigures(figures(sharpe=math.nan), figures(), excess_sharpe=None, of_hindsight=None)
    content = with_null(plain(undefined))
    assert (content["agent"]["sharpe"], content["of_hindsight"]) == (None, None)
    assert "break_even_cost" not in content
    read = decode(content, SplitFigures, "result.json")
    assert math.isnan(read.agent.sharpe)
    assert (read.excess_sharpe, read.of_hindsight, read.break_even_cost) == (None, None, UNSET)


def test_figures_that_are_kept_as_plain_values_keep_their_null(tmp_path):
    unpack_earlier(tmp_path)
    (path,) = tmp_path.glob("deployments/2*/deployment.json")
    assert read_record(path, DeploymentFacts).scores == json.loads(path.read_text())["scores"]


def test_what_a_newer_program_wrote_is_passed_over():
    score = holdout_score()
    content = plain(score) | {"newer": {"a": 1}}
    content["policies"][0]["agent"]["newer"] = 1
    assert decode(content, HoldoutScore, "holdout.json") == score


SCORED = plain(holdout_score())
NO_POLICIES = {name: value for name, value in SCORED.items() if name != "policies"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file or directory"),
        (b"", "not valid JSON"),
        (b'{"study": "s', "not valid JSON, perhaps truncated"),
        (b'{"study": "\xff"}', "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": ' * 2000 + b"1" + b"}" * 2000, "not valid JSON"),
        (json.dumps(SCORED | {"trial": "4"}).encode(), "field trial: expected int, got str"),
        (json.dumps(NO_POLICIES).encode(), "field policies is missing"),
        (json.dumps(SCORED | {"policies": [SCORED["policies"][0] | {"agent": {}}]}).encode(),
         "field policies[0].agent.bars is missing"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_and_the_field(tmp_path, text, words):
    path = tmp_path / "holdout.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(StudyError) as error:
        read_record(path, HoldoutScore)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert str(error.value).endswith("; restore the study's results")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": {"n_envs": 12}}, "field run.seed is missing"),
        ({"splits": {}}, "field mode is missing"),
        (
            {"splits": identity()["splits"] | {"5m": {"purge_bars": "3"}}},
            "field purge_bars: expected int, got str",
        ),
    ],
)
def test_a_damaged_identity_names_what_it_lacks(changes, words):
    with pytest.raises(StudyError, match="the study's identity: ") as error:
        identity_in({"identity": identity(**changes)})
    assert words in str(error.value)


def test_a_damaged_split_of_a_trial_is_left_out():
    whole = plain(SplitFigures(figures(), figures()))
    assert list(splits_in({"split_1": whole, "split_0": {"agent": {}}, "split_x": whole, "data_sha256": "a"})) == [1]


# --------------------------------------------------------------------------------------------------------- stored names
@pytest.mark.parametrize(
    ("pattern", "type_"),
    [
        ("results/old/study.json", StudyFile),
        ("results/old/holdout.json", HoldoutScore),
        ("results/old/trial_1/settings.json", TrialSettings),
        ("deployments/2*/deployment.json", DeploymentFacts),
    ],
)
def test_a_file_of_c6a6d1f_has_the_keys_of_its_record_in_their_order(tmp_path, pattern, type_):
    unpack_earlier(tmp_path)
    (path,) = tmp_path.glob(pattern)
    content = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("policy_sha256", "sha256")}
    again = plain(read_record(path, type_))
    assert [name for name in again if name in content] == list(content)
    for name in {"data", "venue", "holdout", "folds"} & content.keys():
        assert json.dumps(again[name]) == json.dumps(content[name]), name


# Variables that hold no file of a record, although their keys have names of fields.
OTHERS = {
    "config": "arrays of a data set",
    **dict.fromkeys(("train", "settings.train", "env"), "settings of a run"),
    **dict.fromkeys(("row", "columns", "b"), "a table, columns of equity.npz"),
    "known": "metadata of a policy file",
    **dict.fromkeys(("look", "event", "e", "other", "value"), "decisions.jsonl"),
    **dict.fromkeys(("user_attrs", "study.user_attrs", "t.user_attrs"), "attributes that are no records"),
    "content": "about to be written",
    "facts": "format and checksum of deployment.json, compared before it is read",
}


def field_names() -> set[str]:
    found: set[str] = set()
    for type_ in (Metrics, *vars(stored).values()):
        if is_dataclass(type_):
            found |= {field.name for field in fields(type_)}
        elif isinstance(type_, type) and issubclass(type_, msgspec.Struct):
            found |= {field.encode_name for field in msgspec.structs.fields(type_)}
    return found


def keys_read(tree: ast.AST) -> list[tuple[str, str, int]]:
    """(expression, key, line) of every `x["key"]` and `x.get("key")`."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=base, slice=ast.Constant(value=str(key))):
                found.append((ast.unparse(base), key, node.lineno))
            case ast.Call(func=ast.Attribute(value=base, attr="get"), args=[ast.Constant(value=str(key)), *_]):
                found.append((ast.unparse(base), key, node.lineno))
    return found


@pytest.mark.parametrize("folder", ["study", "findings", "report", "deploy", "runner"])
def test_no_other_module_reads_a_record_by_string_key(folder):
    names = field_names()
    assert {"sharpe", "simulator rules", "holdout", "env_resolved"} <= names
    for path in sorted((ROOT / "train" / folder).rglob("*.py")):
        for base, key, line in keys_read(ast.parse(path.read_text())):
            assert key not in names or base in OTHERS, f"{path.name}:{line}: {base}[{key!r}]; use train.records"
