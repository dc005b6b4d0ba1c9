"""Files, modules and links that documentation, docstrings and comments name exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")), *ROOT.glob("docs/*.md")])
FOLDERS = ("environment_Alpaca_kernels", "market", "drl_agents", "train", "adapters", "examples", "barwise", "scripts",
           "benchmarks", "tests")  # fmt: skip
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])

ENDINGS = r"(?:py|sh|md|txt|toml|yaml|css|j2)"
PATH = re.compile(rf"(?<![\w/.<>{{*-])((?:[\w.-]+/)*[\w-]+\.{ENDINGS})(?![\w/*])")
OURS = ("train", "market", "drl_agents", "adapters", "barwise", "environment_Alpaca_kernels", "environment_Alpaca",
        "environment_Alpaca_vectorized", "benchmarks", "examples")  # fmt: skip
DOTTED = re.compile(rf"^(?:{'|'.join(OURS)})(?:\.[A-Za-z_]\w*)+$")
# Files of the hosts and of users, which these pages speak of.
NOT_OURS = {
    "environment_CCXT.py", "environment_Alpaca_batch_vectorized.py", "utils/function_train_test.py",
    "1_optimize_cpcv.py", "env_multiple_crypto.py", "my-torch.txt", "example.py", "NAME.py", "barwise/commands/NAME.py",
    "train_ppo.py", "train_ours.py", "log.txt", "train/records/code_version.txt",
}  # fmt: skip
HOSTS_PAGES = {"into_your_host.md", "compare.md", "elegantrl.md"}  # paths there may be the host's


@cache
def names_of_files() -> frozenset[str]:
    tracked = [path for folder in (*FOLDERS, "docs", "data") for path in (ROOT / folder).rglob("*") if path.is_file()]
    return frozenset(path.name for path in [*tracked, *ROOT.glob("*")])


def wrong_path(text: str, page: Path) -> bool:
    """A path from the root, from the page's folder, or a bare file name that no folder has."""
    is_hosts = page.name in HOSTS_PAGES and not text.startswith(("tests/", "docs/", "benchmarks/"))
    if is_hosts or text in NOT_OURS:
        return False
    if "/" not in text:
        return text not in names_of_files()
    return not any((folder / text).is_file() for folder in (ROOT, page.parent))


@cache
def names_in(path: Path) -> frozenset[str]:
    """What a module or class defines, at the top level and inside classes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return frozenset(found)


def wrong_name(dotted: str) -> bool:
    """No such module, or nothing of that name in it."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:n])
        module = next((m for m in (path.with_suffix(".py"), path / "__init__.py") if m.is_file()), None)
        if module is not None:
            return not {part for part in parts[n:]} <= names_in(module)
        if path.is_dir():  # scripts and benchmarks are no packages
            return n < len(parts)
    return True


def text_of(path: Path) -> str:
    """Comments and docstrings of a source; all of a page."""
    if path.suffix == ".md":
        return path.read_text()
    text = path.read_text()
    comments = re.findall(r"(?:^|\s)#(?!!)(.*)$", text, re.M)
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    return "\n".join([*comments, *filter(None, map(ast.get_docstring, nodes))])


def wrong(path: Path) -> set[str]:
    text = text_of(path)
    ticked = re.findall(r"`([^`\n]+)`", text)
    is_page = path.suffix == ".md"
    paths = PATH.findall(" ".join(ticked) if is_page else text)
    dotted = [word for words in ticked for word in [words.removesuffix("()")] if DOTTED.match(word)]
    found = {name for name in paths if wrong_path(name, path)}
    return found | {name for name in dotted if not re.search(rf"\.{ENDINGS}$", name) and wrong_name(name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page):
    assert wrong(page) == set()


def test_what_comments_and_docstrings_name_exists():
    found = {path.relative_to(ROOT).as_posix(): wrong(path) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in names if f"* [{name}]({name}): " not in index} == set()


@pytest.mark.parametrize("name", ["train.study.handover", "train.run.no_such_thing", "market.alpaca"])
def test_a_name_that_is_gone_is_found(name):
    assert wrong_name(name)
    assert not wrong_name("train.run.train_policy")
    assert wrong_path("train/study/rules.py", ROOT / "README.md")
