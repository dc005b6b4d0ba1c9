"""The recipes for clusters start the trainer with flags that it has, and with an artifact store."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from barwise.commands import optimize
from train.runner.request import StudyRequest

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes"
STORE, STORAGE = "s3://studies/wide", "postgresql://study@dbhost/studies"
# Stands for the trainer: it writes its arguments down and, unless it is to end at once, waits for a signal.
TRAINER = """#!/usr/bin/env bash
printf '%s\\n' "$@" > arguments
if [[ -n "${ENDS_AT_ONCE:-}" ]]; then exit 3; fi
trap 'echo stopped > stopped; exit 143' TERM
touch began
while true; do sleep 0.05; done
"""


def requested(arguments: list[str]) -> StudyRequest:
    """What the trainer makes of its arguments."""
    return optimize.request(optimize.parser().parse_args(arguments))


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """The environment of a SLURM task, submitted from a folder with a stand-in for the trainer."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    (programs / "python").write_text(TRAINER)
    (programs / "python").chmod(0o755)
    ours = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "8", "SLURM_TMPDIR": str(tmp_path / "node")}
    ours |= {"STUDY_STORAGE": STORAGE, "STUDY_ARTIFACTS": STORE}
    return {name: value for name, value in os.environ.items() if not name.startswith("CUDA")} | ours


def slurm_task(environment: dict[str, str]) -> subprocess.Popen[str]:
    flags = ["--study-name", "wide", "--n-trials", "2000"]
    return subprocess.Popen(
        ["bash", str(RECIPES / "slurm_array.sh"), *flags], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_slurm_task_starts_workers_with_an_artifact_store_and_the_nodes_own_disk(cluster, tmp_path):
    with slurm_task(cluster | {"ENDS_AT_ONCE": "1"}) as task:
        said = task.communicate(timeout=30)[0]
    assert task.returncode == 3  # the trainer's
    program, *arguments = (tmp_path / "arguments").read_text().splitlines()
    assert program == "scripts/training/1_optimize_unified.py"
    request = requested(arguments)
    assert (request.artifacts, request.workers, request.gpu_id) == (STORE, 8, -1)
    assert (request.results_dir, request.n_trials) == (tmp_path / "node" / "train_results", 2000)
    assert "dbhost" not in said  # a password may stand in the URL


def test_a_slurm_task_hands_sigterm_on_and_waits_for_the_trainer(cluster, tmp_path):
    with slurm_task(cluster) as task:
        while not (tmp_path / "began").exists():
            time.sleep(0.05)
        task.send_signal(signal.SIGTERM)
        task.communicate(timeout=30)
    assert task.returncode == 143
    assert (tmp_path / "stopped").exists()


def test_a_slurm_task_without_a_store_says_what_is_missing(cluster):
    with slurm_task({name: value for name, value in cluster.items() if name != "STUDY_ARTIFACTS"}) as task:
        said = task.communicate(timeout=30)[0]
    assert task.returncode == 1
    assert "STUDY_ARTIFACTS: set it to s3://bucket/prefix" in said


def test_the_kubernetes_job_starts_workers_with_an_artifact_store_and_mounts_what_they_read_and_write():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((RECIPES / "kubernetes_job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["restartPolicy"] == "Never"
    known = {variable["name"]: STORAGE for variable in container["env"]}
    python, program, *arguments = [
        text.replace("$(STUDY_STORAGE)", known["STUDY_STORAGE"]) for text in container["command"]
    ]
    assert (python, program) == ("python", "scripts/training/1_optimize_unified.py")
    request = requested(arguments)
    assert (request.artifacts, request.workers) == (STORE, int(container["resources"]["requests"]["cpu"]))
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert request.data_dir.parent == Path("/data")
    assert mounts["/data"]["readOnly"]
    assert not mounts[str(request.results_dir)].get("readOnly")
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in spec["volumes"]}
