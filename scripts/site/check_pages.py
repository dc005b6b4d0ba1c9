"""Open pages in Chromium and check them with axe-core. `scripts/check_pages.sh` runs this program.

Chromium is controlled through its debugging pipe: JSON messages that end with a NUL byte, on file descriptors 3 and 4.
"""

from __future__ import annotations

import argparse
import base64
import functools
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OWN_PAGES = ("report.html", "day.html")
FEW = {"site/index.html", "site/commands.html", "site/api_data.html", *OWN_PAGES, "dashboard_study", "dashboard_trial"}
DASHBOARD = {"studies": "", "study": "/studies/1", "trial": "/studies/1/trials?numbers=0", "analytics": "/studies/1/analytics"}
PROGRAM = Path(__file__).resolve().parents[1] / "monitoring" / "web_dashboard.py"
WIDTHS, SCHEMES = (360, 1400), ("light", "dark")
HEIGHT = 900
# Colors are checked after all transitions have ended.
STILL = "*, *::before, *::after { transition: none !important; animation: none !important }"
ADD_STYLE = f"document.head.append(Object.assign(document.createElement('style'), {{textContent: '{STILL}'}}))"
SETTLE = "new Promise(done => setTimeout(done, 150))"  # wait until the theme has adapted to a new width
# The dashboard draws its pages in the browser: wait until nothing has changed for a while.
QUIET = """new Promise(done => {
    let timer;
    const wait = () => { clearTimeout(timer); timer = setTimeout(done, 1000) };
    new MutationObserver(wait).observe(document, {childList: true, subtree: true});
    wait();
    setTimeout(done, 15000);
})"""
RUN_AXE = """axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(v => ({
    id: v.id, impact: v.impact, help: v.help, count: v.nodes.length,
    nodes: v.nodes.slice(0, 3).map(n => n.target.join(' ') + ' ' + (n.any[0] || n.all[0] || n.none[0] || {}).message)
})))"""
OVERFLOW = """(() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const wide = [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > width + 1);
    return wide.slice(0, 3).map(e => e.tagName.toLowerCase() + '.' + e.className);
})()"""


class Browser:
    """Headless Chromium. Commands go to the tab that `visit` opened last."""

    def __init__(self, program: str, profile: str) -> None:
        command_read, self._commands = os.pipe()
        self._answers, answer_write = os.pipe()
        flags = "--headless=new --remote-debugging-pipe --disable-gpu --no-first-run --hide-scrollbars"
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [program, *flags.split(), *sandbox, f"--user-data-dir={profile}"]
        redirect = f'exec "$@" 3<&{command_read} 4>&{answer_write}'
        self.process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *command],
            pass_fds=(command_read, answer_write), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_read)
        os.close(answer_write)
        self._rest, self._number, self._session = b"", itertools.count(1), ""
        self.requests: list[str] = []

    def visit(self, scheme: str) -> None:
        """Open a tab as a new visitor who prefers a color scheme, because the theme remembers the last visit.

        Requests of earlier tabs are no longer recorded.
        """
        self._session = ""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._answers, 1 << 20)
            if not chunk:
                raise SystemExit("check_pages.py: Chromium ended before it answered")
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(message)
        if found.get("method") == "Network.requestWillBeSent" and found.get("sessionId") == self._session:
            self.requests.append(found["params"]["request"]["url"])
        return found

    def _send(self, method: str, params: dict[str, Any]) -> int:
        number = next(self._number)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        return number

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = self._send(method, params)
        while True:
            found = self._receive()
            if found.get("id") == number:
                if "error" in found:
                    raise SystemExit(f"check_pages.py: {method}: {found['error']}")
                return found["result"]

    def open(self, url: str) -> None:
        """Navigate and wait until the page has loaded."""
        self.call("Page.navigate", url=url)
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str) -> Any:
        """Return the value of a script, or of the promise that it returns."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise SystemExit(f"check_pages.py: {answer['exceptionDetails']['exception']['description']}")
        return answer["result"].get("value")

    def show(self, width: int, settle: str) -> None:
        """Set the width of the window and wait for `settle`, a promise."""
        metrics = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.evaluate(settle)

    def screenshot(self, path: Path) -> None:
        """Write a screenshot of the window as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback and yield its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def dashboard(storage: object, artifacts: Path) -> Iterator[str]:
    """Serve the studies of a database with the web dashboard and yield the address of its pages."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ("--port", str(port), "--storage", str(storage), "--artifact-dir", str(artifacts))
    with subprocess.Popen([sys.executable, str(PROGRAM), *flags], stdout=subprocess.PIPE, text=True) as server:
        try:
            if server.stdout is None or not server.stdout.readline().startswith("study "):
                raise SystemExit("check_pages.py: the web dashboard did not start")
            yield f"http://127.0.0.1:{port}/dashboard"
        finally:
            server.terminate()


@dataclass(frozen=True)
class Page:
    """Page to check: its name, its address, the server of its files, and the promise that it is drawn."""

    name: str
    url: str
    server: str
    settle: str


def pages_of(folder: Path, address: str, dashboard_address: str) -> list[Page]:
    """Return the pages of the site, our own pages, and the pages of the web dashboard."""
    names = [f"site/{path.name}" for path in sorted((folder / "site").glob("*.html")) if path.name != "404.html"]
    found = [Page(name, address + name, address, SETTLE) for name in (*names, *OWN_PAGES)]
    server = dashboard_address.removesuffix("dashboard")
    return found + [
        Page(f"dashboard_{name}", dashboard_address + path, server, QUIET) for name, path in DASHBOARD.items()
    ]


def findings(browser: Browser, page: Page, axe: str) -> Iterator[tuple[int, list[str]]]:
    """Open a page and yield (width, lines with faults) for each width."""
    browser.requests.clear()
    browser.open(page.url)
    browser.evaluate(page.settle)
    browser.evaluate(axe)
    browser.evaluate(ADD_STYLE)
    for width in WIDTHS:
        browser.show(width, page.settle)
        lines = [f"wider than the window: {element}" for element in browser.evaluate(OVERFLOW)]
        for found in browser.evaluate(RUN_AXE):
            lines.append(f"{found['id']} ({found['impact']}, {found['count']} places): {found['help']}")
            lines += [f"    {node}" for node in found["nodes"]]
        elsewhere = {url for url in browser.requests if not url.startswith((page.server, "data:", "blob:"))}
        yield width, lines + [f"loads {url}" for url in sorted(elsewhere)]


def check(browser: Browser, pages: Sequence[Page], axe: str, pictures: Path | None) -> list[str]:
    """Return the faults of all pages, one line each."""
    faults: list[str] = []
    for scheme in SCHEMES:
        browser.visit(scheme)
        for page, (width, lines) in ((page, found) for page in pages for found in findings(browser, page, axe)):
            faults += [f"{page.name} at {width} px, {scheme}: {line}" for line in lines]
            if pictures:
                browser.screenshot(pictures / f"{Path(page.name).stem}_{width}_{scheme}.png")
    return faults


def main() -> int:
    """Check every page. Return exit code 1 if any page has a fault."""
    parser = argparse.ArgumentParser(description="Check pages in Chromium with axe-core.")
    parser.add_argument("--browser", required=True, help="path of the Chromium program")
    parser.add_argument("--axe", type=Path, required=True, help="path of axe.min.js")
    parser.add_argument("--folder", type=Path, required=True, help="folder with site/, report.html, day.html, study.db")
    parser.add_argument("--screenshots", type=Path, help="folder for one screenshot per page, width and color scheme")
    parser.add_argument("--few", action="store_true", help="check one page of each kind only, as the tests do")
    args = parser.parse_args()
    if args.screenshots:
        args.screenshots.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        served(args.folder) as address,
        dashboard(f"sqlite:///{args.folder / 'study.db'}", args.folder) as dashboard_address,
    ):
        browser = Browser(args.browser, profile)
        pages = pages_of(args.folder, address, dashboard_address)
        pages = [page for page in pages if not args.few or page.name in FEW]
        faults = check(browser, pages, args.axe.read_text(), args.screenshots)
        browser.process.terminate()
        browser.process.wait()
    print("\n".join(faults) or f"{len(pages)} pages have no faults at {WIDTHS} px, {' and '.join(SCHEMES)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
