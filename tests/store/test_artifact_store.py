"""The artifact store on a real S3 server and real folders: addresses, keys, outages, and files that were changed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import boto3
import pytest

from tests.support.markets import REPO
from tests.support.moto_server import BUCKET, KEY_ID, SECRET, MotoServer
from train.records.errors import StudyError
from train.records.seals import file_sha256
from train.runner.crew import set_up_logging
from train.store import artifact_store
from train.store.artifact_files import StudyArtifacts
from train.store.artifact_store import StoreAwayError, artifacts_url, open_artifacts

URL = f"s3://{BUCKET}/one/two"
MINE = "a" * 32


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    """Either kind of store, empty."""
    if request.param == "folder":
        opened = open_artifacts(artifacts_url(str(tmp_path / "store"), tmp_path))
    else:
        request.getfixturevalue("s3")
        opened = open_artifacts(URL)
    opened.reach()
    return opened


@pytest.fixture
def ours(store, monkeypatch) -> StudyArtifacts:
    """A study that waits for its store; it has no database here."""
    monkeypatch.setattr(StudyArtifacts, "lasts_s", float("inf"))
    return StudyArtifacts(None, store.url, MINE)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [("s3://bucket", "s3://bucket"), ("s3://bucket/a/b/", "s3://bucket/a/b"), ("shared/x", "file:///home/me/shared/x"),
     ("/mnt/x", "file:///mnt/x"), ("file:///mnt/a%20b", "file:///mnt/a b")],
)  # fmt: skip
def test_an_address_is_kept_in_one_form(typed, kept):
    assert artifacts_url(typed, Path("/home/me")) == kept
    assert artifacts_url(kept, Path("/elsewhere")) == kept


@pytest.mark.parametrize(
    ("typed", "words"),
    [("s3://KEY:SESAME@bucket", "must not contain keys"), ("s3://SESAME@bucket/x", "must not contain keys"),
     ("https://KEY:SESAME@host/bucket", "must not contain keys"),
     ("s3://bucket?aws_secret=SESAME", "must not contain keys"),
     ("s3://KEY:SESAME/bucket", "must be s3://BUCKET"), ("file://SESAME/x", "three slashes"), ("", "is empty"),
     ("gs://bucket", "is not supported"), ("s3:///x", "must be s3://BUCKET")],
)  # fmt: skip
def test_another_address_is_refused_and_keys_in_it_are_not_repeated(typed, words):
    with pytest.raises(StudyError, match=re.escape(words)) as raised:
        artifacts_url(typed, Path("/"))
    assert "SESAME" not in str(raised.value)


def test_objects_are_written_read_listed_and_removed(store):
    calls = [partial(store.write, f"{MINE}/{i}", bytes([i]) * i) for i in range(20)]
    store.insist(calls, 0.0)
    (content,) = store.insist([lambda: store.read(f"{MINE}/7")], 0.0)
    assert content == bytes([7]) * 7
    assert {found.key: found.n_bytes for found in store.listed()} == {f"{MINE}/{i}": i for i in range(20)}
    store.remove(f"{MINE}/7")
    store.remove(f"{MINE}/7")
    assert store.read(f"{MINE}/7") is None
    assert len(list(store.listed(MINE))) == 19


def test_a_folder_that_is_not_mounted_is_waited_for_and_not_made(tmp_path):
    store = open_artifacts(f"file://{tmp_path}/mounted")
    with pytest.raises(StoreAwayError, match="no such folder"):
        store.insist([partial(store.write, "a/b", b"x")], 0.0)
    threading.Timer(0.3, (tmp_path / "mounted").mkdir).start()
    store.insist([partial(store.write, "a/b", b"x")])
    assert (tmp_path / "mounted" / "a" / "b").read_bytes() == b"x"


def test_a_missing_bucket_and_a_server_that_is_not_there_are_refused_at_once(s3, monkeypatch):
    with pytest.raises(StudyError, match=r"^cannot use --artifacts s3://none: NoSuchBucket: .*$"):
        open_artifacts("s3://none").reach()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    began_s = time.monotonic()
    with pytest.raises(StudyError, match=r"^cannot use --artifacts s3://other: Could not connect .*$"):
        open_artifacts("s3://other").reach()
    assert time.monotonic() - began_s < 5


def test_wrong_keys_are_refused_at_once_and_nothing_shows_them(monkeypatch, caplog, capsys):
    server = MotoServer(environment={"INITIAL_NO_AUTH_ACTION_COUNT": "4"})  # from the fifth call on keys are checked
    server.start()
    root = {"endpoint_url": server.endpoint, "region_name": "us-east-1", "aws_access_key_id": "r",
            "aws_secret_access_key": "r"}  # fmt: skip
    iam = boto3.client("iam", **root)
    iam.create_user(UserName="u")
    key = iam.create_access_key(UserName="u")["AccessKey"]
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=json.dumps(everything))
    boto3.client("s3", **root).create_bucket(Bucket=BUCKET)
    monkeypatch.setattr(logging.getLogger(), "handlers", [*logging.getLogger().handlers])
    set_up_logging("DEBUG")
    caplog.set_level(logging.DEBUG)
    right, wrong = (key["AccessKeyId"], key["SecretAccessKey"]), (key["AccessKeyId"], SECRET)
    try:
        for (key_id, secret), words in ((right, ""), (wrong, "SignatureDoesNotMatch"), ((KEY_ID, SECRET), "Invalid")):
            for name, value in (
                server.variables() | {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secret}
            ).items():
                monkeypatch.setenv(name, value)
            open_artifacts.cache_clear()
            if not words:
                open_artifacts(URL).reach()
                continue
            with pytest.raises(StudyError, match=words) as raised:
                open_artifacts(URL).reach()
            assert "\n" not in str(raised.value)
            said = f"{raised.value}{caplog.text}{''.join(capsys.readouterr())}"
            assert not any(shown in said for shown in (KEY_ID, SECRET, *right))
    finally:
        server.kill()
        open_artifacts.cache_clear()


def test_without_boto3_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    open_artifacts.cache_clear()
    with pytest.raises(StudyError, match=r"requires boto3; run pip install -r requirements-artifacts.txt"):
        open_artifacts("s3://bucket/never opened")


# ------------------------------------------------------------------------------------------------------------ files
def files_in(folder: Path, n: int, size: int = 100) -> dict[Path, str]:
    folder.mkdir(parents=True)
    paths = [folder / f"{i}.bin" for i in range(n)]
    for path in paths:
        path.write_bytes(os.urandom(size))
    return {path: file_sha256(path) for path in paths}


def elsewhere(files: dict[Path, str], folder: Path) -> dict[Path, str]:
    return {folder / path.name: digest for path, digest in files.items()}


def test_missing_files_are_fetched_and_those_that_are_here_are_not(ours, tmp_path, monkeypatch):
    files = files_in(tmp_path / "one", 100)
    ours.send(files)
    wanted = elsewhere(files, tmp_path / "other")
    ours.fetch(wanted)
    assert {path: file_sha256(path) for path in wanted} == wanted
    (next(iter(wanted))).unlink()
    read, asked = artifact_store.Artifacts.read, []
    monkeypatch.setattr(artifact_store.Artifacts, "read", lambda self, key: asked.append(key) or read(self, key))
    ours.fetch(wanted)
    assert asked == [f"{MINE}/{next(iter(wanted.values()))}"]


def test_a_file_that_was_changed_in_the_store_or_is_not_there_is_not_written(ours, tmp_path, caplog):
    files = files_in(tmp_path / "one", 3)
    ours.send(files)
    changed, missing, kept = files.values()
    ours.store.write(f"{MINE}/{changed}", b"something else")
    ours.store.remove(f"{MINE}/{missing}")
    wanted = elsewhere(files, tmp_path / "other")
    ours.fetch(wanted)
    assert [path.exists() for path in wanted] == [False, False, True]
    found = hashlib.sha256(b"something else").hexdigest()[:12]
    assert f"was altered, so it is not used (SHA-256 {found}, expected {changed[:12]})" in caplog.text
    assert f"either (SHA-256 {missing[:12]})" in caplog.text
    assert kept[:12] not in caplog.text


# ---------------------------------------------------------------------------------------------------------- outages
def test_a_server_that_is_killed_in_mid_upload_is_waited_for(s3, ours_on_s3, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(artifact_store, "QUIET_S", 0.3)
    caplog.set_level(logging.INFO)
    files = files_in(tmp_path / "one", 4, size=6_000_000)  # more than lies in the buffers of a connection
    s3.freeze(True)
    sending = threading.Thread(target=lambda: ours_on_s3.send(files))
    sending.start()
    time.sleep(0.5)
    s3.kill()
    time.sleep(0.5)
    s3.start()
    s3.client().create_bucket(Bucket=BUCKET)  # it keeps its objects in memory
    sending.join(20)
    assert not sending.is_alive()
    assert {found.key for found in ours_on_s3.store.listed()} >= {f"{MINE}/{digest}" for digest in files.values()}
    assert f"waiting for the artifact store {URL} for" in caplog.text
    assert f"the artifact store {URL}: available after" in caplog.text


@pytest.fixture
def ours_on_s3(s3, monkeypatch) -> StudyArtifacts:
    monkeypatch.setattr(StudyArtifacts, "lasts_s", float("inf"))
    return StudyArtifacts(None, URL, MINE)


WAITS = """
    import logging, sys
    from train.store.artifact_store import open_artifacts
    from train.study.interruption import Interrupted, Interruption
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    store = open_artifacts(sys.argv[1])
    with Interruption():
        try:
            print("begins", flush=True)
            store.insist([lambda: store.write("a/b", b"x" * 5_000_000)])
        except Interrupted as signal:
            sys.exit(128 + signal.signal_number)
"""


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["frozen", "vanished", "refused"])
def test_a_wait_says_so_within_ten_seconds_and_ends_within_five_of_a_signal(s3, trouble):
    if trouble == "frozen":
        s3.freeze(True)
    endpoint = {"frozen": s3.endpoint, "vanished": "http://10.255.255.1", "refused": "http://127.0.0.1:9"}[trouble]
    environment = os.environ | {"AWS_ENDPOINT_URL_S3": endpoint, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", textwrap.dedent(WAITS), URL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline() == "begins\n"
        began_s = time.monotonic()
        assert process.stdout.readline().startswith(f"waiting for the artifact store {URL} for ")
        assert time.monotonic() - began_s < 10
        process.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        assert process.wait(20) == 143
        assert time.monotonic() - began_s < 5
    finally:
        process.kill()
        if trouble == "frozen":
            s3.freeze(False)


def test_a_program_that_only_reads_gives_up(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    open_artifacts.cache_clear()
    store, began_s = open_artifacts(URL), time.monotonic()
    with pytest.raises(StoreAwayError) as raised:
        store.insist([lambda: store.read("a/b")], lasts_s=1.0)
    assert 1.0 <= time.monotonic() - began_s < 4.0
    assert raised.value.filename == URL
    assert "Could not connect" in raised.value.strerror
