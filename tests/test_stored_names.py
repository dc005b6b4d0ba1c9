"""docs/stored_names.md lists the log lines, files, keys, flags and exit codes that code and files have.

If a test here fails because a name is gone: either keep reading the old name (studies, deployments and datasets that
users have hold it), or, if only scripts use it, note the change in docs/stored_names.md and CHANGELOG.md. If it fails
because a name is new: `python -m tests.support.stored_names` adds it to the page.
"""

import re
import signal
from pathlib import Path

import pytest

from barwise import arguments
from barwise.__main__ import COMMANDS
from tests.support import stored_names
from train.deploy.judge import LOOKED
from train.deploy.service import CANDIDATE_REFUSED
from train.records import keys
from train.records.results import EQUITY_COLUMNS
from train.study.eligibility import NO_SIGNAL_CODE

LISTED = stored_names.listed()
OF_THE_CODE = stored_names.names_of_the_code()
ADVICE = (
    "keep reading the old name, because users' files and scripts have it; or note the change in docs/stored_names.md "
    "and CHANGELOG.md"
)
NEW = "list it: python -m tests.support.stored_names"
WRITTEN = ["files", "study user attributes", "trial system attributes", "decisions.jsonl", *stored_names.JSON_FILES,
           *stored_names.ARRAY_FILES]  # fmt: skip
# The study of then and the resumed one differ in what only some of them have.
LATER = {"trial system attributes": {"constraints:max_drawdown", "constraints:min_trades"}}


def compare(title: str, now: set[str], is_whole: bool = True) -> None:
    gone = LISTED[title] - now
    assert not gone or not is_whole, f"{title}: {sorted(gone)} is gone; {ADVICE}"
    assert not now - LISTED[title], f"{title}: {sorted(now - LISTED[title])} is not on the page; {NEW}"


@pytest.fixture(scope="module")
def of_then(tmp_path_factory) -> dict[str, set[str]]:
    folder = tmp_path_factory.mktemp("c6a6d1f")
    stored_names.unpack_earlier(folder)
    return stored_names.names_of_the_files(folder)


@pytest.fixture(scope="module")
def of_today(tmp_path_factory) -> dict[str, set[str]]:
    folder = tmp_path_factory.mktemp("today")
    lines = stored_names.run_everything(folder)
    masked = {re.sub(r"\d+ parallel", "<N> parallel", line) for line in lines}
    return stored_names.names_of_the_files(folder) | {"log lines": masked & LISTED["log lines"]}


@pytest.mark.slow
@pytest.mark.parametrize("title", [*WRITTEN, "log lines"])
def test_what_todays_code_writes_is_what_the_page_lists(of_today, title):
    compare(title, of_today[title])


@pytest.mark.slow
def test_what_todays_code_keeps_of_a_trial_is_what_the_page_lists(of_today):
    compare("trial user attributes", of_today["trial user attributes"] | set(stored_names.TRIAL_CONSTANTS))


@pytest.mark.parametrize("title", [*WRITTEN, "trial user attributes"])
def test_a_name_in_a_study_of_c6a6d1f_is_still_listed(of_then, title):
    compare(title, of_then.get(title, set()), is_whole=False)


@pytest.mark.parametrize("title", list(OF_THE_CODE))
def test_flags_commands_and_variables_are_listed(title):
    if title == "environment variables":
        text = "\n".join([*stored_names.sources().values(), Path(stored_names.ROOT, "tests/conftest.py").read_text()])
        text += "\n".join(path.read_text() for path in Path(stored_names.ROOT, "tests/support").glob("*.py"))
        behind_a_constant = {name for name in LISTED[title] if name in text}
        return compare(title, OF_THE_CODE[title] | behind_a_constant)
    return compare(title, OF_THE_CODE[title])


def test_every_command_has_its_flags_on_the_page():
    assert {f"barwise {command}" for command in COMMANDS} == {t for t in LISTED if t.startswith("barwise ")}


def test_constants_are_names_of_the_page():
    attributes = {keys.IDENTITY, keys.DATA_DIR, keys.TARGET, keys.HOLDOUT_SCORE, keys.COMMAND, f"{LOOKED}<hash>"}
    assert attributes <= LISTED["study user attributes"], ADVICE
    assert set(stored_names.TRIAL_CONSTANTS) <= LISTED["trial user attributes"], ADVICE
    assert {keys.SCORE_FILE, keys.OWNER_FILE, keys.SETTINGS} <= {f.rpartition("/")[2] for f in LISTED["files"]}, ADVICE
    assert set(EQUITY_COLUMNS) == LISTED["equity.npz"], ADVICE
    assert keys.DEFAULT_STORAGE.removeprefix("sqlite:///") in LISTED["further files"], ADVICE


@pytest.mark.parametrize("name", sorted(LISTED["further files"]))
def test_a_further_file_has_its_name_in_the_code(name):
    parts = [part for part in name.split("/") if "<" not in part]
    text = "\n".join(stored_names.sources().values())
    assert all(f'"{part}' in text or f"/{part}" in text for part in parts), f"{name} is gone; {ADVICE}"


def test_exit_codes_are_those_of_the_code():
    codes = {int(line.partition(":")[0]) for line in LISTED["exit codes"]}
    of_signals = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    assert arguments.INTERRUPTED in of_signals
    assert codes == {0, arguments.FAULT, arguments.USER_ERROR, *of_signals}, ADVICE
    table = set(re.findall(r"^\| (.*?) \| (\d+) \|", stored_names.PAGE.read_text(), re.M))
    assert ("`barwise optimize`, launcher", str(NO_SIGNAL_CODE)) in table, ADVICE
    assert ("`barwise deploy`", str(CANDIDATE_REFUSED)) in table, ADVICE
    launcher = (stored_names.ROOT / "start_vectorized_training.sh").read_text()
    assert f"readonly NO_SIGNAL_CODE={NO_SIGNAL_CODE} " in launcher, ADVICE


def test_new_names_are_added_to_a_block_and_none_is_taken_away():
    page = "text\n```names flags\n--a --gone\n```\n```names other\nx\n```\n"
    filled = stored_names.with_new_names(page, {"flags": {"--a", "--b"}})
    assert stored_names.listed(filled) == {"flags": {"--a", "--b", "--gone"}, "other": {"x"}}


def test_a_renamed_key_is_found_in_both_directions():
    page = {"result.json": LISTED["result.json"] - {"fold"} | {"split"}}
    assert page["result.json"] - LISTED["result.json"]
    with pytest.raises(AssertionError, match="is gone; keep reading the old name"):
        compare("result.json", page["result.json"] - {"split"})
    with pytest.raises(AssertionError, match="is not on the page"):
        compare("result.json", LISTED["result.json"] | {"split"})
