"""Simulated machines on one kernel, each with its own network, host name, process ids and clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.postgres_server import why_not

FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"
# libfaketime 0.9.10 breaks the system call behind Python's time.sleep if it leaves the monotonic clock alone.
SLEEP = "import select, time\ntime.sleep = lambda seconds: select.select((), (), (), seconds)[0] and None\n"
TOOLS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}  # program -> Debian package


def missing() -> str | None:
    """Return the reason why no machine can be created here, or None."""
    if os.getuid() != 0:
        return "not root"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            return f"no {tool}: apt-get install {package}"
    if not list(Path("/").glob(FAKETIME[1:])):
        return "no libfaketime: apt-get install faketime"
    return why_not()


class Machine:
    """Simulated machine: Linux namespaces, connected to this machine by a cable (a veth pair) that can be unplugged.

    Args:
        name: host name.
        clock_s: seconds by which its clock is ahead of ours. The monotonic clock is shared.
    """

    def __init__(self, name: str, clock_s: float) -> None:
        add = ("ip", "netns", "add")
        number = next(n for n in range(1, 250) if _succeeds(*add, f"machines{n}"))  # others may exist
        self._namespace, self._cable, self._clock_s = f"machines{number}", f"mach{number}", clock_s
        self.host_address = f"10.203.{number}.1"  # address of our end of the cable
        inside = f"ip -n {self._namespace}"
        for line in (
            f"ip link add {self._cable} type veth peer name {self._cable}in",
            f"ip link set {self._cable}in netns {self._namespace}",
            f"ip addr add {self.host_address}/24 dev {self._cable}",
            f"ip link set {self._cable} up",
            f"{inside} addr add 10.203.{number}.2/24 dev {self._cable}in",
            f"{inside} link set {self._cable}in up",
            f"{inside} link set lo up",
        ):
            subprocess.run(line.split(), check=True)
        unshare = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        enter = ("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._namespace)  # ends with this process
        boot = f"hostname {name}; echo up; exec sleep infinity"
        self._init = subprocess.Popen([*enter, *unshare, "sh", "-c", boot], stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL)  # fmt: skip
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == b"up\n"
        (init,) = psutil.Process(self._init.pid).children()
        self._inside = ("nsenter", "--target", str(init.pid), "--net", "--uts", "--pid", "--mount")

    def start(self, command: list[str], folder: Path, log: Path, variables: Mapping[str, str]) -> subprocess.Popen:
        """Start a program on this machine, and append its output to `log`."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | variables
        settings: list[str] = []
        if self._clock_s:
            (library,) = Path("/").glob(FAKETIME[1:])
            (folder / "sitecustomize.py").write_text(SLEEP)
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), environment.get("PYTHONPATH"))))
            settings = [f"LD_PRELOAD={library}", f"FAKETIME={self._clock_s:+.0f}s", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
        with log.open("a") as file:
            return subprocess.Popen([*self._inside, "env", *settings, *command], cwd=folder, stdout=file, stderr=file,
                                    env=environment)  # fmt: skip

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Unplug the cable inside this context, so that no packet passes in either direction."""
        subprocess.run(["ip", "link", "set", self._cable, "down"], check=True)
        try:
            yield
        finally:
            subprocess.run(["ip", "link", "set", self._cable, "up"], check=True)

    def vanish(self) -> None:
        """Unplug the cable, then kill all processes of the machine, so that no connection is closed."""
        subprocess.run(["ip", "link", "set", self._cable, "down"], check=True)
        self._init.kill()
        self._init.wait()

    def remove(self) -> None:
        """Kill all processes of the machine, and delete its namespaces."""
        self._init.kill()
        self._init.wait()
        time.sleep(0.1)
        subprocess.run(["ip", "netns", "del", self._namespace], check=False)  # and the cable with it
        subprocess.run(["ip", "link", "del", self._cable], check=False, stderr=subprocess.DEVNULL)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
