"""The site: ``sphinx-build docs site``, then open site/index.html. Settings of Sphinx, and what its pages are made of."""

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename, guess_lexer
from sphinx import addnodes
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tinyres  # noqa: E402

project, author, version = "tinyres", "the tinyres authors", tinyres.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["labs/*/page.md"]  # the same text as on the page labs.md
html_theme, html_title = "furo", "tinyres"
html_static_path, html_css_files = ["static"], ["site.css"]
html_copy_source, html_show_sphinx, html_show_copyright = False, False, False
pygments_style, pygments_dark_style = "friendly", "github-dark"
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page may go from a title to any level
autodoc_member_order, autodoc_typehints, autodoc_class_signature = "bysource", "signature", "mixed"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True

# --- docstrings: Markdown's habits in reStructuredText -----------------------------------------------------------------

QUOTED = re.compile(r"(``.+?``|`[^`]+`)")
ARGUMENTS = re.compile(r"(\w+(?:, \w+)*): (.*)")


def as_restructured_text(app, what, name, obj, options, lines):
    """Names in quotes and indented blocks are code, ``name: what it is`` is a list; nothing else is markup."""
    found = []
    for paragraph in "\n".join(lines).strip("\n").split("\n\n"):
        first, *rest = paragraph.strip("\n").split("\n")
        outer = [line for line in (first, *rest) if not line.startswith("    ")]
        if not outer:
            found += [] if found[-2:-1] and found[-2].startswith("    ") else ["::", ""]
            found += [first, *rest]
        elif first.endswith(":") and len(outer) == 1 and rest:
            found += [marked(first), "", "::", "", *(line.replace("``", "") for line in rest)]
        elif all(map(ARGUMENTS.match, outer)):
            found += [
                f":{m[1]}: {marked(m[2])}" if (m := ARGUMENTS.match(line)) else marked(line) for line in (first, *rest)
            ]
        else:
            found += map(marked, (first, *rest))
        found.append("")
    lines[:] = found


def marked(line):
    return "".join(code(part) if QUOTED.fullmatch(part) else plain(part) for part in QUOTED.split(line))


def code(part):
    return part if part.startswith("``") else f"`{part}`"


def plain(part):
    return re.sub(r"_(?!\w)", r"\\_", re.sub(r"([\\*|])", r"\\\1", part))


# --- links to files of the project lead to pages with their text -------------------------------------------------------


def link_to_sources(app, doctree):
    """Before Sphinx copies them as downloads."""
    docname = app.env.docname
    for node in list(doctree.findall(addnodes.download_reference)):
        path = Path(os.path.normpath(Path(app.env.doc2path(docname)).parent / node["reftarget"]))
        if not path.is_relative_to(ROOT) or not path.exists():
            logging.getLogger(__name__).warning("no such file: %s", node["reftarget"], location=node)
            continue
        page = source_page(path)
        if page is None:
            continue
        up = "../" * docname.count("/")
        node.replace_self(nodes.reference("", "", *node.children, refuri=f"{up}{page}.html", internal=True))


def source_page(path):
    """The name of the page of a file; None for what is to be downloaded."""
    if path.is_dir() or path.suffix in (".json", ".png", ".svg"):
        return None
    name = f"source/{path.relative_to(ROOT)}"
    SOURCES[name] = path
    return name


SOURCES = {}


def anchors(app, docname, content):
    """An anchor in HTML is one for links from other pages, too."""
    content[0] = re.sub(r'^<a id="([\w-]+)"></a>$', r"(\1)=", content[0], flags=re.M)


def pages_of_sources(app):
    """A page for every file of the project's own code, and for those that are linked to."""
    for folder in ("tinyres", "kernels", "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh", ".h"):
                source_page(path)
    for name, path in SOURCES.items():
        text = path.read_text("utf-8")
        lexer = get_lexer_for_filename(path.name, text) if path.suffix else guess_lexer(text)
        body = highlight(text, lexer, HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True))
        title = str(path.relative_to(ROOT))
        yield name, {"title": title, "body": f"<h1>{title}</h1>{body}"}, "page.html"


def setup(app):
    app.connect("autodoc-process-docstring", as_restructured_text)
    app.connect("source-read", anchors)
    app.connect("doctree-read", link_to_sources, priority=100)
    app.connect("html-collect-pages", pages_of_sources)
    return {"parallel_read_safe": False}
