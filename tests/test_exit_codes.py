"""What an error of each kind does to the exit code of a program; a script runs the code of its own checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from barwise.__main__ import main
from barwise.arguments import exit_code
from barwise.setup_checks import packages
from market.errors import BarsError, DatasetError, VenueError
from train.deploy.folder import BusyError
from train.deploy.loading import DeploymentError
from train.records.errors import StudyError
from train.validation.splits import SplitError
from train.watch.reading import UnavailableError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        *((kind("give another"), 2, "give another") for kind in (StudyError, BarsError, DatasetError, VenueError)),
        *((kind("give another"), 2, "give another") for kind in (SplitError, DeploymentError)),
        (BusyError("another judges"), 4, "another judges"),
        (UnavailableError("locked"), 1, "locked"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "x: No such file or directory"),
        (OSError(28, "No space left on device", "x"), 1, "x: No space left on device; run it again"),
        (MemoryError("no room"), 1, "out of memory: no room; run it again"),
        (RuntimeError("device lost"), 1, "RuntimeError: device lost; run it again"),
        (ModuleNotFoundError("no", name="rich"), 2, "rich is not installed for this Python"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_one_line_and_its_code(capsys, error, code, text):
    def work():
        raise error

    assert exit_code("p.py", work, "run it again", faults=(RuntimeError,)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"p.py: {text}")


def test_a_mistake_in_the_program_is_raised():
    with pytest.raises(RuntimeError):
        exit_code("p.py", lambda: (_ for _ in ()).throw(RuntimeError("x")))
    with pytest.raises(KeyError):
        exit_code("p.py", lambda: {}["x"])


def test_a_script_of_another_checkout_is_refused(tmp_path):
    """Its code, data and results would be those of the installed one."""
    script = tmp_path / "scripts" / "validation" / "report.py"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / "scripts" / "validation" / "report.py").read_text())
    (tmp_path / "barwise").mkdir()
    (tmp_path / "barwise" / "__main__.py").touch()
    command = [sys.executable, str(script), "--study-name", "s"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path} is not the installed checkout ({ROOT})" in done.stderr


def test_the_list_of_commands_reports_its_own_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "barwise").mkdir()
    (tmp_path / "barwise" / "__main__.py").touch()
    monkeypatch.setattr(sys, "argv", ["elsewhere/bin/barwise"])
    monkeypatch.chdir(tmp_path)
    assert main(["--help"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "is not the installed checkout" in err
    monkeypatch.chdir(ROOT)
    assert (main(["--help"]), main([])) == (0, 2)
    assert capsys.readouterr().out.count("usage: barwise COMMAND") == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "from barwise.arguments import exit_code; work = lambda: print('x' * 10**6, flush=True)",
            "p.py: the reader of",
        ),
        (
            "from barwise.__main__ import main; work = lambda: [main(['--help']) for _ in range(10**4)][-1]",
            "barwise: the",
        ),
    ],
    ids=["a program", "the list of commands"],
)
def test_a_reader_that_has_enough_is_no_traceback(code, said):
    """As with `| head -1`: the pipe is closed while the program writes."""
    code = f"import sys; {code}; from barwise.arguments import exit_code; sys.exit(exit_code('p.py', work))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        program.stdout.read(1)
        program.stdout.close()
        shown = program.stderr.read()
    assert program.returncode in (0, 141)
    assert shown.startswith(said)
    assert "Traceback" not in shown


def test_the_doctor_knows_what_a_wheel_asks_for(tmp_path):
    (found, *_) = packages(tmp_path)  # without requirement files, as an installed wheel
    assert found.text.startswith("all ")
