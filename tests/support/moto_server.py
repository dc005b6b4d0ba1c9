"""A real S3 server on loopback: moto's, in a process of its own, which can be killed, frozen and started again.

After a kill its objects are gone, as moto keeps them in memory; a test that needs them freezes it instead.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import pytest

BUCKET = "studies"
# Begins like the keys of Amazon; none of it may appear anywhere.
KEY_ID, SECRET = "testing-key-id", "testing-secret-not-to-be-printed"


@dataclass
class MotoServer:
    """Started by `start`; its port stays the same."""

    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Until it answers."""
        command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        environment = {**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**26), **self.environment}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError("moto_server does not answer")

    def kill(self) -> None:
        """At once: connections are cut."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self, is_frozen: bool) -> None:
        """Stop it from answering, its connections open; or let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP if is_frozen else signal.SIGCONT)

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )  # fmt: skip

    def variables(self) -> dict[str, str]:
        """What boto3 reads."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint, "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip


@pytest.fixture(scope="session")
def moto_process() -> Iterator[MotoServer]:
    if find_spec("moto") is None or find_spec("boto3") is None:
        pytest.skip("no moto: pip install -r requirements-dev.txt")
    server = MotoServer()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(moto_process, monkeypatch) -> MotoServer:
    """A running server with an empty bucket, to which boto3's variables of this process lead."""
    from train.store.artifact_store import open_artifacts

    if moto_process.process is None:
        moto_process.start()
    for name, value in moto_process.variables().items():
        monkeypatch.setenv(name, value)
    client = moto_process.client()
    if BUCKET in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=found["Key"])
    else:
        client.create_bucket(Bucket=BUCKET)
    open_artifacts.cache_clear()
    return moto_process
