"""Hold the documentation to the code: files, functions, links and quoted lines exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "grpo_tir"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
OURS = ("src", "sandbox", "recipes", "benchmarks", "tests", "docs")
EXAMPLES = {"program.py", "FILE.py", "recipe/simpletir/agent_utils.py"}
"""Names that stand for a file of the reader's, or of another project."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def without_blocks(text: str) -> str:
    """The text without fenced code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def definitions(path: Path) -> set[str]:
    """`function`, `Class` and `Class.method` of a module."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return found


@pages
def test_every_relative_link_leads_to_a_file_and_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: no heading for {target}"


@pages
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    files = [f"/{path.relative_to(ROOT)}" for folder in OURS for path in (ROOT / folder).rglob("*.*")]
    text = re.sub(r"https?://\S+", "", without_blocks(page.read_text(encoding="utf-8")))
    for name in set(re.findall(r"[\w./-]*\w\.(?:py|yaml|sh|js)\b", text)) - EXAMPLES:
        ending = "/" + re.sub(r"^(\.\./)+", "", name)
        assert any(file.endswith(ending) for file in files), f"{page.name} names {name}"


@pages
def test_every_function_that_a_page_names_is_in_its_file(page: Path) -> None:
    for file, name in re.findall(r"`([\w/]+\.py): ([\w.]+)`", page.read_text(encoding="utf-8")):
        assert name in definitions(SOURCE / file), f"{page.name}: {file} defines no {name}"


def test_the_algorithm_page_names_a_function_for_each_equation() -> None:
    assert len(re.findall(r"`[\w/]+\.py: [\w.]+`", (ROOT / "docs/algorithm.md").read_text(encoding="utf-8"))) > 20


def test_the_loop_in_the_readme_is_the_trainers() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[0].splitlines()
    rest = iter((SOURCE / "train.py").read_text(encoding="utf-8").splitlines())
    assert 8 <= len(quoted) <= 12
    for line in quoted:
        assert line in rest, f"not in train.py, or not in this order: {line}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


def test_the_list_of_files_is_complete() -> None:
    """Within docs/files.md an entry belongs to the folder that was named last."""
    listed, folder = set(), ""
    for line in (ROOT / "docs/files.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"([\w/]+)/( |$)", line):
            folder = heading[1]
        elif line.startswith("  "):
            listed |= {f"{folder}/{name}" for name in re.findall(r"(?<=[ ])\w+\.py\b", line)}
    paths = [
        path
        for name in ("src/grpo_tir", "sandbox", "recipes/programs", "benchmarks")
        for path in (ROOT / name).rglob("*.py")
    ]
    present = {str(path.relative_to(ROOT)) for path in paths if path.name != "__init__.py"}
    assert listed == present, f"missing: {sorted(present - listed)}; gone: {sorted(listed - present)}"
