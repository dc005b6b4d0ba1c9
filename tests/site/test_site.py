"""The documentation site builds without warnings, loads nothing from other hosts, and shows docstrings and help texts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from barwise.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed (requirements-docs.txt)")
CDNS = ("unpkg.com", "jsdelivr.net", "cdnjs.", "googleapis.com", "gstatic.com")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def build(site: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site), *flags]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


class Resources(HTMLParser):
    """Parser that collects the addresses of everything that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.found += [values[name] for name in [LOADED.get(tag, "")] if values.get(name)]
        self.found += re.findall(r"url\(([^)]+)\)", values.get("style") or "")


def other_hosts(html: str) -> list[str]:
    resources = Resources()
    resources.feed(html)
    return [address for address in resources.found if re.match(r"(?:https?:)?//", address)]


def test_the_site_loads_nothing_from_another_host(site):
    pages = {path.name: path.read_text() for path in site.rglob("*.html")}
    assert len(pages) > 35
    assert {name: other_hosts(html) for name, html in pages.items() if other_hosts(html)} == {}
    assert [name for name, html in pages.items() if 'class="mermaid"' in html] == []  # the theme would fetch mermaid
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", sheet.read_text()) == [], sheet
    for script in site.rglob("*.js"):
        assert [name for name in CDNS if name in script.read_text()] == [], script


def test_a_resource_of_another_host_is_found():
    assert other_hosts('<a href="https://x.y/"></a><script src="https://x.y/z.js"></script>') == ["https://x.y/z.js"]
    assert other_hosts('<link href="//x.y/z.css"><img src="z.png">') == ["//x.y/z.css"]


def test_every_block_and_marker_is_rendered(site):
    for path in site.glob("*.html"):
        text = re.sub(r"<[^>]+>", "", path.read_text())
        assert "```" not in text, path.name
        assert "<!-- site:" not in path.read_text(), path.name
        assert not re.search(r"^::: \w", text, re.MULTILINE), path.name


def test_the_commands_page_shows_the_help_of_every_command(site):
    page = (site / "commands.html").read_text()
    for name in COMMANDS:
        assert f"usage: barwise {name} " in page, name
    assert str(ROOT) not in page


def test_the_api_pages_show_shapes_and_errors(site):
    simulator, training = ((site / f"api_{name}.html").read_text() for name in ("simulator", "training"))
    assert "price_array" in simulator
    assert "Raises:" in simulator
    assert "TrainingDiverged" in training


def test_the_index_of_the_search_covers_every_page(site):
    index = (site / "search" / "search_index.json").read_text()
    missing = [path.name for path in site.glob("*.html") if path.name != "404.html" and f'"{path.name}' not in index]
    assert missing == []


def test_a_broken_anchor_fails_the_build(tmp_path):
    """The test uses a separate folder, so that nothing in the repository changes."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Home\n\n[somewhere](#no-such-section)\n")
    settings = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    settings = re.sub(r"^(?:hooks|extra_css|extra_javascript):.*\n", "", settings, flags=re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(settings)
    done = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode != 0
    assert "no-such-section" in done.stdout + done.stderr
