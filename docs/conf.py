"""Build the site of `make docs`: the pages of docs/, README.md, and a reference made of the docstrings.

Sphinx reads the repository from its root. Nothing is fetched, while building or while reading. A link to a file of
the repository leads to a page with that file.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import grpo_tir

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "src/grpo_tir"

project, author = "grpo-tir", "The grpo-tir authors"
release = version = grpo_tir.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.linkcode"]
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "docs/*.rst", "docs/tutorial.py"]
exclude_patterns = [".*", "build", "runs", "src", "tests"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext", ".py": "percent"}
highlight_language = "none"

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"  # browsers draw it themselves; MathJax would be fetched
myst_url_schemes = {"http": None, "https": None, "file-page": "{{path}}"}

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"grpo-tir {release}"
html_copy_source = False
html_show_sphinx = False
pygments_dark_style = "github-dark"
html_show_copyright = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]

READING_ORDER = {
    "Start": ["docs/tutorial", "docs/howto"],
    "Guides": ["docs/train", "docs/data", "docs/evaluation", "docs/sandbox"],
    "Understand": ["docs/algorithm", "docs/files", "docs/comparison", "docs/paper", "docs/experiments"],
    "Reference": ["docs/reference", "docs/settings", "docs/metrics"],
    "Project": ["CONTRIBUTING", "CHANGELOG"],
}
LEXERS = {".py": "python", ".yaml": "yaml", ".json": "json", ".jsonl": "json", ".sh": "bash"}

linked: set[Path] = set()
"""Files and folders of the repository that get a page."""


def file_page(path: Path, depth: int) -> str:
    """Return the address of the page of a file, for a page `depth` folders below the root of the site."""
    linked.add(path)
    return f"{'../' * depth}file/{path.relative_to(ROOT)}.html"


def link_to_files(app: Sphinx, name: str, text: list[str]) -> None:
    """Point links to files of the repository, which are no pages of the site, to their pages."""
    folder = (ROOT / name).parent

    def replace(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match[1]))
        if (
            ":" in match[1]
            or not path.exists()
            or path.suffix == ".png"
            or app.env.path2doc(path) in app.env.found_docs
        ):
            return match[0]
        return f"](file-page:{file_page(path, name.count('/'))})"

    text[0] = re.sub(r"\]\(([^)\s#]+)\)", replace, text[0])
    if name == root_doc:
        for caption, pages in READING_ORDER.items():
            text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def pages_of_files(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each linked file, with numbered lines, and for each linked folder, with its files."""
    done: set[Path] = set()
    while todo := linked - done:
        for path in todo:
            done.add(path)
            name = str(path.relative_to(ROOT))
            if path.is_dir():
                files = sorted(
                    each for each in path.rglob("*.*") if each.is_file() and "__pycache__" not in str(each)
                )
                rows = (f'<li><a href="{file_page(f, name.count("/") + 1)}">{f.name}</a></li>' for f in files)
                body = f"<ul>{''.join(rows)}</ul>"
            else:
                body = app.builder.highlighter.highlight_block(
                    path.read_text(encoding="utf-8"),
                    LEXERS.get(path.suffix, "text"),
                    linenos="inline",
                    lineanchors="L",
                )
            yield f"file/{name}", {"title": name, "body": f"<h1>{name}</h1>{body}"}, "page.html"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str:
    """Return the page and line of a documented object. The reference lies in docs/, one folder deep."""
    found: Any = grpo_tir
    for part in info["fullname"].split("."):
        value = getattr(found, part, None)
        value = value.fget if isinstance(value, property) else value
        found = value if inspect.isclass(value) or inspect.isfunction(value) else found  # a field: its class
    path = Path(inspect.getsourcefile(found) or "")
    return f"{file_page(path, 1)}#L-{inspect.getsourcelines(found)[1]}"


def as_rst(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Turn Markdown's code spans and the sections of a docstring into reStructuredText."""
    for number, line in enumerate(lines):
        line = line.replace("```", r"\`\`\`")
        ends = lambda match: f"``{match[1]}``" + (r"\ " if match[2] else "")  # noqa: E731 (`name`s needs a gap)
        lines[number] = re.sub(r"(?<![`\\])`([^`]+)`(?=(\w?))", ends, line)
    if what != "attribute":  # sections such as `Args:`; a field has none, and its text may have colons
        lines[:] = GoogleDocstring(lines, what=what, name=name, obj=item).lines()


def no_signature(app: Sphinx, what: str, name: str, *_: Any) -> tuple[str, None] | None:
    """Omit the signature of a protocol, and of a settings class, whose fields follow."""
    return ("", None) if what == "class" and (name.endswith("Config") or name == "grpo_tir.Tool") else None


def formula(translator: Any, node: Any) -> None:
    """Write a formula as MathML."""
    is_block = isinstance(node, nodes.math_block)
    tex = re.sub(r"\\[bB]igg?[lr]?(?![a-z])", "", node.astext())  # MathML's brackets grow by themselves
    try:
        text = tex2mathml(tex, as_block=is_block)
    except MathError as error:
        text = ""
        logging.getLogger(__name__).warning("%s In the formula %s", error, tex, location=node)
    translator.body.append(f'<div class="math">{text}</div>' if is_block else text)
    raise nodes.SkipNode


class Percent(MystParser):
    """Read a script in Jupyter's percent format as the notebook's page."""

    supported = ("percent",)

    def parse(self, inputstring: str, document: Any) -> None:
        """Parse the Markdown of the notebook."""
        notebook = jupytext.reads(inputstring, fmt="py:percent")
        notebook.metadata = {"jupytext": {"notebook_metadata_filter": "-all"}}
        text = jupytext.writes(notebook, fmt="md")
        download = '<a href="tutorial.ipynb" download>Download this page as a notebook.</a>'
        super().parse(text.replace("\n\n", f"\n\n{download}\n\n", 1), document)


def undocumented() -> Iterator[str]:
    """Yield each public name, method and setting without a docstring."""
    for name in grpo_tir.__all__:
        found = getattr(grpo_tir, name)
        members = vars(found) if inspect.isclass(found) else {}
        named = {f"{name}.{key}": value for key, value in members.items() if not key.startswith("_")}
        for key, value in {name: found, **named}.items():
            is_code = inspect.isclass(value) or inspect.isfunction(value) or isinstance(value, property)
            text = inspect.getdoc(value) or "("
            if is_code and text.split("(")[0] in ("", name):  # a dataclass gets its signature as docstring
                yield key
        if name.endswith("Config") and name != "Config":
            written = ModuleAnalyzer.for_module(found.__module__).find_attr_docs()
            yield from (f"{name}.{key}" for key in found.__annotations__ if (name, key) not in written)


def check(app: Sphinx, error: Exception | None) -> None:
    """Refuse a public name that is not in the reference or has no docstring, and whatever a page would fetch.

    Raises:
        ExtensionError: all faults.
    """
    if error is not None:
        return
    present = app.env.domains.python_domain.objects
    faults = [
        f"grpo_tir.{name} is not in the reference"
        for name in grpo_tir.__all__
        if f"grpo_tir.{name}" not in present
    ]
    faults += [f"grpo_tir.{name} has no docstring" for name in undocumented()]
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        faults += [
            f"{page} fetches {each}" for each in re.findall(r'(?:src|<link[^>]* href)="(?:https?:)?//[^"]*', text)
        ]
    if faults:
        raise ExtensionError("; ".join(faults))
    notebook = jupytext.read(ROOT / "docs/tutorial.py")
    jupytext.write(notebook, Path(app.outdir) / "docs/tutorial.ipynb")
    refresh = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=README.html">'
    (Path(app.outdir) / "index.html").write_text(
        refresh + '<a href="README.html">grpo-tir</a>\n', encoding="utf-8"
    )


def setup(app: Sphinx) -> None:
    """Register the above."""
    app.add_source_parser(Percent)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("source-read", link_to_files)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-process-signature", no_signature)
    app.connect("html-collect-pages", pages_of_files)
    app.connect("build-finished", check)
