"""Hooks of mkdocs: pages from outside docs/, links to them, and the parts of pages that a program writes.

A page asks for a generated part with a comment, which a code host does not show:

    <!-- site: commands -->          the `--help` of every command
    <!-- site: examples -->          the source of every example
    <!-- site: api MODULE.NAME -->   the docstrings of an object; a number after it is the level of its heading
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
# Files outside docs/ that are pages of the site, by their paths from the root.
PAGES = {"data/README.md": "data.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
ASSETS = "files/"  # other linked files of the repository keep their paths below this folder
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
MARKER = re.compile(r"^<!-- site: (\w+)(.*) -->$", re.MULTILINE)
NAMES = re.compile(r"^```names .*$", re.MULTILINE)  # lists in stored_names.md, which a program reads
HELP_COLUMNS = 100
CDN = "https://unpkg.com/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and every other file that a page links to."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    sources = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
    links = {path for source in sources for path in linked((ROOT / source).read_text(), source)}
    for path in sorted(links):
        if site_address(path) == ASSETS + path:
            files.append(File.generated(config, ASSETS + path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in generated parts, and point links at the pages of the site."""
    source = next((path for path, uri in PAGES.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")
    filled = MARKER.sub(lambda found: PARTS[found[1]](*found[2].split()), NAMES.sub("```text", markdown))
    return LINK.sub(lambda found: site_link(*found.groups(""), source), filled)


def site_link(text: str, target: str, anchor: str, source: str) -> str:
    """Return a link for the site. A link that shows the name of a page shows the page's title instead."""
    path = in_repository(target, source)
    if text.endswith(".md") and (ROOT / path).is_file():
        text = (ROOT / path).read_text().partition("\n")[0].removeprefix("# ")
    return f"[{text}]({site_address(path)}{anchor})"


def on_post_build(config: MkDocsConfig) -> None:
    """Take the addresses of a CDN out of the theme's scripts: old browsers lack a function instead of loading it."""
    for script in Path(config.site_dir).rglob("*.js"):
        text = script.read_text()
        if CDN in text:
            script.write_text(text.replace(CDN, ""))


def linked(markdown: str, source: str) -> set[str]:
    """Return the paths from the root that a page links to."""
    return {in_repository(found[2], source) for found in LINK.finditer(markdown)}


def in_repository(target: str, source: str) -> str:
    """Return the path from the root that a link in the file `source` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def site_address(path: str) -> str:
    """Return the site's address for a path from the root. A path that does not exist fails the build.

    All pages of the site lie in one folder, so the address is the same from each of them. Examples and adapters are
    sections of pages, and any other file of the repository is copied.
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
    """Return one section per command with its `--help`."""
    sys.path.insert(0, str(ROOT))
    commands = import_module("barwise.__main__").COMMANDS
    os.environ.update(COLUMNS=str(HELP_COLUMNS))
    return "\n\n".join(
        f"## barwise {name}\n\nThe same program: `{script}`.\n\n```text\n{help_of(module, name)}```"
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
    """Return one section per example: the question it answers, and its source."""
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
