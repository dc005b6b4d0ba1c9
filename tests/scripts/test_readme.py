"""The README's commands, flags and figures are the repository's, and those of the pages it sends newcomers to."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measuring, step
from scripts import readme_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
TRAINING = (ROOT / "docs" / "training.md").read_text()
MOST_LINES = 150  # a newcomer reads it whole


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    parts = [str(part) for part in command]
    return subprocess.run(parts, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_readme_stays_short_and_begins_with_what_a_newcomer_needs():
    lines = README.splitlines()
    assert len(lines) <= MOST_LINES, "move a section to a page of docs/ and link to it"
    first_screen = "\n".join(lines[:45])
    programs = ("./start_vectorized_training.sh ", "scripts/run_tests.sh ", "environment_Alpaca_vectorized.py")
    for wanted in (*programs, "MIT"):
        assert wanted in first_screen


@pytest.mark.parametrize("page", ["README.md", "docs/drop_in.md"])
def test_the_example_runs_with_one_copied_file(page, tmp_path):
    shutil.copy(ROOT / "environment_Alpaca_vectorized.py", tmp_path)
    (example,) = blocks("python", (ROOT / page).read_text())
    (tmp_path / "example.py").write_text(example)
    result = run(sys.executable, "example.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "dtype=torch.float64" in result.stdout


def test_compare_answers_as_the_readme_says():
    drop_in = ROOT / "environment_Alpaca_vectorized.py"
    result = run(sys.executable, drop_in, "--compare", "--steps", "60", "--seconds", "0")
    assert result.returncode == 3, result.stderr
    assert "equal over" in result.stdout
    assert "not reached:\n  environment_Alpaca.py:" in result.stdout


@pytest.mark.parametrize(
    "script",
    sorted(set(re.findall(r"(?:scripts|benchmarks|tests)/[\w/]+\.(?:py|sh)|\w+\.sh", README + TRAINING))),
    ids=str,
)
def test_a_named_script_exists(script):
    assert (ROOT / script).is_file()


def test_the_flags_of_the_trainer_exist():
    table = TRAINING.partition("`--help` lists all of them")[2].partition("Where results go")[0]
    command = next(block for block in blocks("bash", TRAINING) if "1_optimize_unified.py" in block)
    assert table.count("\n| `--") > 10
    flags = set(re.findall(r"--[a-z][a-z-]+", table + command))
    known = run(sys.executable, ROOT / "scripts" / "training" / "1_optimize_unified.py", "--help").stdout
    assert {flag for flag in flags if flag not in known} == set()


def test_every_figure_comes_from_the_result_files():
    result = run(sys.executable, ROOT / "scripts" / "readme_table.py", "--check")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("stem", "content"), readme_table.machines(), ids=lambda value: str(value)[:40])
def test_a_section_of_a_result_file_says_how_it_was_made(stem, content):
    assert stem == measuring.slug(content["machine"])
    assert content["sections"].keys() <= readme_table.TITLES.keys()
    for part in content["sections"].values():
        assert {"command", "date", "torch", "threads", "commit", "about", "columns", "rows"} <= part.keys()
        assert "--quick" not in part["command"]
        assert "/" not in part["command"].removeprefix("python benchmarks/")
    for name in content["sections"].keys() & readme_table.PICTURES.keys():
        assert (ROOT / "docs" / readme_table.picture(stem, name)).is_file()


def written(folder: Path, **sections: dict) -> None:
    machine = {"cpu": "A Chip", "cores": 2, "gpu": None, "python": "3.11"}
    (folder / "a_chip_2_cores.json").write_text(json.dumps({"machine": machine, "sections": sections}))


def part(**changed) -> dict:
    usual = {
        "command": "python benchmarks/step.py", "date": "2026-01-02", "torch": "2.13.0", "threads": 2, "commit": "abc",
        "about": "What was measured.",
        "columns": {"contender": "contender", "n_envs": "n_envs", "per_s": "env-steps/s"},
        "rows": [{"contender": "ours", "n_envs": 12, "per_s": 1_234_567}],
    }  # fmt: skip
    return usual | changed


def test_a_table_holds_the_figures_of_the_file_and_the_missed_target(tmp_path):
    rows = [*part()["rows"], measuring.missing_row("theirs", "their-package", 12)]
    checks = [measuring.check("speedup (net 32)", 99.4, least=400.0), measuring.check("seconds", 2.1, most=3.0)]
    checks += [measuring.check("share", 0.89985, least=0.9), measuring.check("ratio", None, least=2.0)]
    written(tmp_path, step=part(rows=rows, checks=checks), update=part())
    found = readme_table.machines(tmp_path)
    short = readme_table.render(readme_table.short_blocks(found), found)
    long = readme_table.render(readme_table.long_blocks(found), found)
    assert "| ours | 12 | 1,234,567 |" in long
    assert "| theirs | 12 | not installed: pip install their-package |" in long
    assert short.startswith(readme_table.NOTHING)  # the README shows the comparison with other projects only
    assert "- speedup (net 32): 99.4 (target >= 400, missed)" in long
    assert "- seconds: 2.1 (target <= 3, met)" in long
    assert "- share: 0.89985 (target >= 0.9, missed)" in long
    assert "- ratio: not measured (target >= 2, missed)" in long
    assert "commit abc, 2026-01-02" in long
    assert "There are no GPU results yet." in short
    assert "### Update" in long


def test_the_comparison_has_one_row_per_environment_and_says_why_a_peer_is_missing(tmp_path):
    features = dict.fromkeys(readme_table.FEATURES, "no")
    fast = {"contender": "Fast", "features": features, "own": True}
    theirs = {"contender": "Theirs 1.0 Env", "features": features | {"costs": "fee"}}
    rows = [
        fast | {"n_envs": 12, "per_s": 4_000_000, "ratio": 1.0},
        fast | {"n_envs": 4096, "per_s": 9_000_000, "ratio": 1.0},
        {"contender": "Plain", "features": features, "own": True, "n_envs": 12, "per_s": 5, "ratio": 9.0},
        theirs | {"n_envs": 12, "per_s": 40_000, "ratio": 100.2},
        theirs | {"n_envs": 4096, "per_s": 3_000_000, "ratio": 3.0},
        {"contender": "Absent Env", "features": features, "n_envs": 1, "note": "cannot be installed: no wheel"},
    ]
    written(tmp_path, peers=part(rows=rows))
    found = readme_table.machines(tmp_path)
    short = readme_table.render(readme_table.short_blocks(found), found)
    assert "| **barwise** | 4,000,000 (n=12), 9,000,000 (n=4,096) |  | no" in short
    assert (
        "| Theirs 1.0 Env | 40,000 (n=12), 3,000,000 (n=4,096) | 100x (n=12), 3x (n=4,096) | no | no | fee |" in short
    )
    assert "| Absent Env | cannot be installed: no wheel |  | no" in short
    assert "Plain" not in short
    assert "commit abc, 2026-01-02" in short


def test_without_results_the_pages_say_so(tmp_path):
    (tmp_path / "learning.json").write_text("{}")
    found = readme_table.machines(tmp_path)
    assert readme_table.render(readme_table.short_blocks(found), found).startswith(readme_table.NOTHING)


def test_a_section_is_merged_and_leaves_the_others(tmp_path, capsys):
    written(tmp_path, step=part())
    path = tmp_path / "a_chip_2_cores.json"
    args = argparse.Namespace(quick=True, out=path, gpu=-1, own_file="")
    measuring.keep(args, "update", part(about="Another."))
    sections = json.loads(path.read_text())["sections"]
    assert sections == {"step": part(), "update": part(about="Another.")}
    args.out = None
    measuring.keep(args, "trial", part(), draw=lambda *_: pytest.fail("--quick keeps nothing"))
    assert "What was measured." in capsys.readouterr().out


def test_the_first_comparison_is_with_gymnasium_over_the_scalar_class():
    rows = [
        {"contender": "gymnasium SyncVectorEnv over CryptoEnvAlpaca, standard", "n_envs": 12, "per_s": 50},
        {"contender": "VectorizedCryptoEnvAlpacaOptimized, standard, random bars", "n_envs": 12, "per_s": 200},
        {"contender": "VectorizedCryptoEnvAlpacaOptimized, other, random bars", "n_envs": 12, "per_s": 200},
        {"contender": "elegantrl StockTradingVmapEnv", "n_envs": 12, "per_s": 10},
    ]
    assert [row.get("sync_ratio") for row in step.with_sync_ratios(rows)] == [1.0, 4.0, None, None]
    for _, content in readme_table.machines():
        part = content["sections"]["step"]
        assert step.with_sync_ratios(part["rows"]) == part["rows"]
        assert step.checks(part["rows"]) == part["checks"]
        assert "SyncVectorEnv" in part["checks"][0]["what"]


def test_a_ratio_is_the_median_within_rounds_and_never_of_medians():
    # the second round was slow for both
    assert measuring.ratio([100.0, 10.0, 300.0], [10.0, 1.0, 100.0]) == 10.0


def test_contenders_take_turns():
    turns = []
    contenders = [measuring.Local(name, 1, lambda name=name: turns.append(name), 1) for name in "ab"]
    rates = measuring.interleaved(contenders, rounds=3, seconds=0.0)
    assert [len(own) for own in rates] == [3, 3]
    changes = [name for name, before in zip(turns, ["", *turns], strict=False) if name != before]
    assert changes == ["a", "b"] * 4
