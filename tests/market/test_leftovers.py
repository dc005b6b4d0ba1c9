"""What a killed save leaves beside the dataset is swept by the next save of the same folder, and nothing else is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from market import files
from market.dataset import load_dataset, save_dataset

ROOT = Path(__file__).resolve().parents[2]

# Saves for ever: the first file is never done. Killed, or left at work, by the test.
STUCK = """
import sys, time
sys.path.insert(0, sys.argv[1])
from market import dataset
from market.sample import synthetic_dataset
def wait(file):
    print("writing", flush=True)
    time.sleep(60)
dataset.sync_file = wait
dataset.save_dataset(synthetic_dataset("5m", 64, ("BTC",)), sys.argv[2])
"""


@pytest.fixture
def stuck_writer(tmp_path):
    command = [sys.executable, "-c", STUCK, str(ROOT), str(tmp_path / "5m")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        yield writer
        writer.kill()


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_the_next_save_sweeps_what_a_killed_one_left(dataset, tmp_path, stuck_writer):
    stuck_writer.kill()
    stuck_writer.wait()
    (left,) = names(tmp_path)
    assert left.startswith(".5m.")
    assert names(tmp_path / left) == ["price_array.npy"]
    save_dataset(dataset, tmp_path / "5m")
    assert names(tmp_path) == ["5m"]


def test_a_save_at_work_in_another_process_is_left_alone(dataset, tmp_path, stuck_writer):
    (at_work,) = names(tmp_path)
    save_dataset(dataset, tmp_path / "5m")
    assert names(tmp_path) == [at_work, "5m"]
    assert names(tmp_path / at_work) == ["price_array.npy"]


def test_only_our_own_leftovers_of_the_same_folder_are_swept(dataset, tmp_path):
    foreign = [".5m.abcd1234.bak", ".5m.abcd123.tmp", ".5m.ABCD1234.tmp", ".15m.abcd1234.tmp", "5m.abcd1234.tmp", ".5m"]
    for name in [*foreign, ".5m.abcd1234.tmp", ".5m.efgh5678.tmp"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "price_array.npy").write_bytes(b"half")
    (tmp_path / ".5m.efgh5678.tmp" / "diary.txt").write_text("mine")
    (tmp_path / ".5m.file1234.tmp").write_text("mine")
    (tmp_path / ".5m.link1234.tmp").symlink_to(tmp_path / ".5m")
    save_dataset(dataset, tmp_path / "5m")
    kept = [".5m.efgh5678.tmp", ".5m.file1234.tmp", ".5m.link1234.tmp", "5m"]
    assert names(tmp_path) == sorted([*foreign, *kept])
    assert names(tmp_path / ".5m") == ["price_array.npy"]


@pytest.mark.parametrize(("age_s", "is_swept"), [(0.0, False), (3_600.0, True)])
def test_an_empty_folder_is_swept_when_it_is_not_just_being_made(dataset, tmp_path, age_s, is_swept):
    made = tmp_path / ".5m.abcd1234.tmp"
    made.mkdir()
    os.utime(made, (time.time() - age_s,) * 2)
    save_dataset(dataset, tmp_path / "5m")
    assert made.exists() != is_swept


def test_an_old_dataset_set_aside_goes_once_another_is_in_its_place(dataset, tmp_path):
    # A kill between the two renames of put_in_place, where folders cannot be exchanged.
    save_dataset(dataset, tmp_path / "5m")
    aside = tmp_path / ".5m.abcd1234.old"
    os.rename(tmp_path / "5m", aside)
    files.sweep_leftovers(tmp_path / "5m", frozenset(names(aside)))
    assert load_dataset(aside).sha256 == dataset.sha256
    save_dataset(dataset, tmp_path / "5m")
    save_dataset(dataset, tmp_path / "5m", overwrite=True)
    assert names(tmp_path) == ["5m"]
