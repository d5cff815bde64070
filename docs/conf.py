"""The site, built from these pages and the docstrings: ``sphinx-build -W --keep-going -b html docs site``.

The pages are Markdown that any code host shows, and the docstrings are plain text. What they lack for a site is done here:
docstrings become reStructuredText, and links to source files lead to pages of source inside the site.
"""

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tinyres  # noqa: E402

project, release = "tinyres", tinyres.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.linkcode"]
exclude_patterns = ["labs/[!d]*/page.md", "labs/depth/page.md", "labs/degradation/page.md"]  # labs.md has what they say
myst_heading_anchors = 4
highlight_language = "text"  # of indented blocks, which are commands and formulas
smartquotes = False  # or --html becomes a dash
default_role = "py:obj"
add_module_names = False  # the title of a page says which module its names are in
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 100
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "tinyres"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_domain_indices = False
html_show_copyright = False
html_show_search_summary = False  # a page that was opened from disk may not fetch others

# Source: a page for each file and each folder.

FOLDERS = ("tinyres", "kernels", "examples", "benchmarks", "docs/gradient")
LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".h": "c++", ".json": "json", ".md": "markdown"}
FILES = sorted(p for top in FOLDERS for p in (ROOT / top).rglob("*") if p.suffix in LANGUAGES) + sorted(ROOT.glob("*.md"))
LISTED = {parent for path in FILES for parent in path.parents if parent.is_relative_to(ROOT)}


def page_of(path: Path) -> str:
    """The page of a file or a folder, within the site."""
    return ("source" / path.relative_to(ROOT) / ("index" if path in LISTED else "")).as_posix()


def line_of(path: Path, name: str) -> int:
    """Where a file defines a function, a class or Class.method; 0 if it does not."""
    text, place = path.read_text("utf-8"), 0
    for part in name.split("."):
        pattern = rf"^.*\b(?:def|class|void(?: __launch_bounds__\(.*?\))?) {re.escape(part)}\b"
        if not (found := re.compile(pattern, re.M).search(text, place)):
            return 0
        place = found.start()
    return text.count("\n", 0, place) + 1


class SourceLinks(SphinxTransform):
    """Links to source files lead to their pages, and so does code behind such a link: ``[join.py](...) `AddReLU` ``."""

    default_priority = 500

    def apply(self, **options: Any) -> None:
        page = Path(self.env.doc2path(self.env.docname))
        kinds = (addnodes.download_reference, addnodes.pending_xref)  # MyST's for files, and for folders
        for link in list(self.document.findall(lambda node: isinstance(node, kinds))):
            path = Path(os.path.normpath(page.parent / link.get("reftarget", "")))
            if link.get("reftype") != "myst" or not (path in FILES or path in LISTED):
                continue
            uri = os.path.relpath(f"{page_of(path)}.html", Path(self.env.docname).parent)
            for name in link.parent[link.parent.index(link) + 1 :] if path in FILES else ():
                if isinstance(name, addnodes.download_reference):
                    break
                if isinstance(name, nodes.literal) and (line := line_of(path, name.astext())):
                    name.replace_self(nodes.reference("", "", name.deepcopy(), refuri=f"{uri}#L-{line}", internal=True))
            link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """The page and line of an object, as seen from a page in the folder api."""
    path = Path(getattr(sys.modules.get(info["module"]), "__file__", None) or "")
    if path not in FILES:
        return None
    line = line_of(path, info["fullname"])  # 0: a constant, or a function that another one makes
    return f"../{page_of(path)}.html{f'#L-{line}' if line else ''}"


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    for path in [*FILES, *LISTED]:
        page = page_of(path)

        def link(other: Path, name: str, page: str = page) -> str:
            return f'<a class="reference" href="{app.builder.get_relative_uri(page, page_of(other))}">{name}</a>'

        folder = path if path in LISTED else path.parent
        inside = [p for p in {*FILES, *LISTED} if p.parent == folder and p != folder]
        items = [f"<li>{link(p, p.name + '/' * (p in LISTED))}</li>" for p in sorted(inside, key=lambda p: (p in FILES, p))]
        listing = f"<ul>{''.join(items)}</ul>"
        above = [link(p, p.name if p != ROOT else "source") for p in reversed(path.parents) if p in LISTED]
        body = listing
        if path in FILES:
            text, language = path.read_text("utf-8"), LANGUAGES[path.suffix]
            body = app.builder.highlighter.highlight_block(text, language, linenos="inline", linespans="L")  # type: ignore
        name = path.name if path != ROOT else "source"
        body = f'<h1 class="path">{" / ".join([*above, name])}</h1>{body}'
        # (the folder beside the page, in place of the site's contents)
        yield page, {"title": name, "body": body, "toctree": lambda listing=listing, **_: listing}, "page.html"


# Docstrings: paragraphs of plain text, with ``code`` and `names`; what is indented is code, too.


def escaped(text: str) -> str:
    """No asterisk, bar or underscore means anything, except within backticks."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.S)
    return "".join(part if part.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", part) for part in parts)


def as_rest(paragraph: str) -> str:
    head, _, rest = paragraph.partition("\n")
    if paragraph.lstrip().startswith(">>>"):
        return textwrap.dedent(paragraph)
    if head.startswith("    "):
        return "::\n\n" + paragraph
    if head.endswith(":") and rest.startswith("    "):  # a heading, and what it has to say
        return f"{escaped(head)}\n\n{as_rest(textwrap.dedent(rest) if rest.lstrip().startswith('``') else rest)}"
    rows = re.split(r"\n(?!    )", paragraph)
    if len(rows) > 1 and all(re.match(r"``\S+``  |[\w, ]+: ", row) for row in rows):  # names, each with its meaning
        rows = [re.sub(r"^([\w, ]+): ", r"``\1``: ", " ".join(row.split())) for row in rows]
        return "\n".join(f"* {escaped(row)}" for row in rows)
    return escaped(paragraph)


def docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    paragraphs = re.split(r"\n{2,}", "\n".join(lines).strip("\n"))
    lines[:] = [*"\n\n".join(map(as_rest, paragraphs)).split("\n"), ""]


def any_name(app: Sphinx, env: Any, node: addnodes.pending_xref, content: nodes.Element) -> nodes.reference | None:
    """`ShapeError` or `ops.AddReLU`: what ends in the last of these names and has the others, on this page or on another."""
    if node.get("refdomain") != "py":
        return None
    *places, last = re.sub(r"^(tinyres|tr)\.", "", node["reftarget"]).split(".")
    kinds = ("class", "exception") if node["reftype"] == "class" else ()  # in a signature, float is no method
    found = [
        (kind == "module", page != node["refdoc"], len(name), name, page, anchor)
        for name, _, kind, page, anchor, _ in env.get_domain("py").get_objects()
        if name.rpartition(".")[2] == last and {*places} <= {*name.split(".")} and (not kinds or kind in kinds)
    ]
    *_, name, page, anchor = min(found, default=("", "", ""))
    return make_refnode(app.builder, node["refdoc"], page, anchor, content, name) if found else None


def anchors(app: Sphinx, page: str, text: list[str]) -> None:
    """HTML's anchors, which code hosts understand, as MyST's targets."""
    text[0] = re.sub(r'^<a id="(\S+)"></a>$', r"(\1)=", text[0], flags=re.M)


def setup(app: Sphinx) -> None:
    app.add_transform(SourceLinks)
    app.connect("html-collect-pages", source_pages)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("missing-reference", any_name)
    app.connect("source-read", anchors)
