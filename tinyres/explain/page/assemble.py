"""One file from the page's parts: no network, nothing beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tinyres.files import StrPath, write_atomically

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("data.js", "draw.js", "views_*.js", "page.js")  # in this order
PART = re.compile(r"/\*(CSS|DATA|JS)\*/")


def write_page(path: StrPath, data: dict[str, Any]) -> int:
    """Writes the page, whole or not at all, and returns its size in bytes. Raises OSError if it cannot be written."""
    content = page(data).encode()
    write_atomically(path, content)
    return len(content)


def page(data: dict[str, Any]) -> str:
    """The page as text: the template with style, data and scripts in their places."""
    parts = {
        "CSS": (STATIC / "page.css").read_text("utf-8"),
        # no "<": nothing in the data can end the element that holds it
        "DATA": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "JS": "\n".join(file.read_text("utf-8") for name in SCRIPTS for file in sorted(STATIC.glob(name))),
    }
    return PART.sub(lambda found: parts[found[1]], (STATIC / "page.html").read_text("utf-8"))
