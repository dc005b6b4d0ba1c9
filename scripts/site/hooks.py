"""Hooks for mkdocs: add pages from outside docs/, adapt links, and fill in generated parts of pages.

A page requests a generated part with a comment, which code hosts do not display:

    <!-- site: commands -->          the `--help` of every command
    <!-- site: examples -->          the source of every example
    <!-- site: api MODULE.NAME -->   the docstrings of an object; an optional number sets the heading level
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import posixpath
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Files outside docs/ that become pages: path from the root -> page.
PAGES = {"data/README.md": "data.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
ASSETS = "files/"  # other linked files are copied below this folder
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
MARKER = re.compile(r"^<!-- site: (\w+)(.*) -->$", re.MULTILINE)
NAMES = re.compile(r"^```names .*$", re.MULTILINE)  # lists in stored_names.md, which a test reads
HELP_COLUMNS = 100
CDN = "https://unpkg.com/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and all other files that pages link to."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    sources = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
    links = {path for source in sources for path in linked((ROOT / source).read_text(), source)}
    for path in sorted(links):
        if site_address(path) == ASSETS + path:
            files.append(File.generated(config, ASSETS + path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in generated parts, and make links point to pages of the site."""
    source = next((path for path, uri in PAGES.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")
    filled = MARKER.sub(lambda found: PARTS[found[1]](*found[2].split()), NAMES.sub("```text", markdown))
    return LINK.sub(lambda found: site_link(*found.groups(""), source), filled)


def site_link(text: str, target: str, anchor: str, source: str) -> str:
    """Return a link for the site. If the text is the file name of a page, it is replaced by the title of the page."""
    path = in_repository(target, source)
    if text.endswith(".md") and (ROOT / path).is_file():
        text = (ROOT / path).read_text().partition("\n")[0].removeprefix("# ")
    return f"[{text}]({site_address(path)}{anchor})"


def on_post_build(config: MkDocsConfig) -> None:
    """Remove CDN addresses from the theme's scripts, so that old browsers load no polyfill from another host."""
    for script in Path(config.site_dir).rglob("*.js"):
        text = script.read_text()
        if CDN in text:
            script.write_text(text.replace(CDN, ""))


def linked(markdown: str, source: str) -> set[str]:
    """Return the paths from the root that a page links to."""
    return {in_repository(found[2], source) for found in LINK.finditer(markdown)}


def in_repository(target: str, source: str) -> str:
    """Return the path from the root of the file that a link in `source` points to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def site_address(path: str) -> str:
    """Return the address on the site of a path from the root. A path that does not exist fails the build.

    All pages are in one folder, so the address is the same from each of them. Examples and adapters are sections of
    pages. All other files of the repository are copied.
    """
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("examples/") and path.endswith(".py"):
        return f"examples.md#{Path(path).stem}"
    if path.startswith("adapters/"):
        return "api_simulator.md#adapters"
    return ASSETS + path if (ROOT / path).is_file() else path


def command_help() -> str:
    """Return one section per command with the output of its `--help`."""
    sys.path.insert(0, str(ROOT))
    commands = import_module("barwise.__main__").COMMANDS
    os.environ.update(COLUMNS=str(HELP_COLUMNS))
    return "\n\n".join(
        f"## barwise {name}\n\nThis command runs the same program as `{script}`.\n\n```text\n{help_of(module, name)}```"
        for name, (module, script) in commands.items()
    )


def help_of(module: str, name: str) -> str:
    """Run `barwise NAME --help` in this process and return what it prints."""
    out = io.StringIO()
    before, sys.argv = sys.argv, [f"barwise {name}"]
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        import_module(f"barwise.commands.{module}").main(["--help"])
    sys.argv = before
    return out.getvalue().replace(str(ROOT) + os.sep, "")


def examples() -> str:
    """Return one section per example with its question and its source code."""
    paths = [path for path in sorted((ROOT / "examples").glob("*.py")) if path.stem != "__init__"]
    return "\n\n".join(example(path) for path in paths)


def example(path: Path) -> str:
    """Return the section of one example."""
    text = path.read_text()
    question = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    source = text.partition('"""\n\n')[2]
    return f"## {path.stem}\n\n{question}\n\n```python\n{source}```"


def api(name: str, level: str = "2") -> str:
    """Return mkdocstrings' directive for an object. Adapters of several libraries have one name, so labels differ."""
    module, _, own = name.rpartition(".")
    label = f'      toc_label: "{own} ({module.rpartition(".")[2]})"\n' if module.startswith("adapters.") else ""
    return f"::: {name}\n    options:\n      heading_level: {level}\n{label}"


PARTS: dict[str, Callable[..., str]] = {"commands": command_help, "examples": examples, "api": api}
