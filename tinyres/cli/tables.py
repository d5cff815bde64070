"""Text and tables on the terminal."""

import textwrap
from collections.abc import Sequence


def print_wrapped(text: str) -> None:
    """Lines of 80 characters at most."""
    for line in text.split("\n"):
        print(textwrap.fill(line, 80))


def print_table(title: str, heads: Sequence[str], rows: list[list[str]], left: int = 1) -> None:
    """A table; the first ``left`` columns are text, the others numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print_wrapped(title)
    print()
    Console(highlight=False, markup=False).print(table)
