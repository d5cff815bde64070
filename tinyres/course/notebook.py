"""A chapter as a Jupyter notebook."""

from __future__ import annotations

import re

from tinyres.course.chapter import IMAGE, blocks, plain
from tinyres.errors import UsageError


def notebook(text: str) -> str:
    """The chapter as the text of a notebook: prose and code, without outputs, which are there to be predicted first."""
    try:
        import nbformat
    except ImportError:
        raise UsageError("a notebook needs nbformat, and Jupyter to open it: pip install nbformat notebook") from None
    cells, prose = [], ""

    def close() -> None:
        nonlocal prose
        words = IMAGE.sub("", plain(prose))  # the code draws the figures
        if words.strip():
            cells.append(nbformat.v4.new_markdown_cell(re.sub(r"\n{3,}", "\n\n", words).strip()))
        prose = ""

    for block in blocks(text):
        if block.kind == "code":
            close()
            cells.append(nbformat.v4.new_code_cell(block.body.rstrip()))
        elif block.kind != "output":
            prose += block.text
    close()
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"  # the same file at every call
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    book = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"
