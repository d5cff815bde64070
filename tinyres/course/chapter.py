"""A chapter: Markdown whose Python blocks run, in order and in one namespace.

- What a block prints stands below it, in a block of kind ``text``. ``text within 5%`` lets numbers differ by so much;
  otherwise they may differ by one in their last place.
- Below a paragraph that begins with ``**Predict.**`` the output is folded away.
- A block that ends in an expression shows it: a drawing goes to the image that follows the block.
- Below ``<!-- source FILE NAME -->`` stands a definition of the engine, with its lines, as the file has it.
- Below ``<!-- exercises -->`` stand the chapter's exercises.

`rewrite` writes all of these anew; `problems` says where they are not what they should be.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyres.course.exercise import CHAPTERS, exercises
from tinyres.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent.parent
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.M | re.S)
SOURCE = re.compile(r"<!-- source (\S+) (\S+)( code)? -->\n")
EXERCISES = re.compile(r"(<!-- exercises -->\n\n).*?(?=\n\n(?!- )|\Z)", re.S)
IMAGE = re.compile(r"!\[([^\]]*)\]\((figures/[^)]+)\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")  # to another file
COMMENT = re.compile(r"<!--.*?-->\n?")
DETAILS = re.compile(r"^</?details>.*$\n*", re.M)
PREDICT, OPENED = "**Predict.**", "<details><summary>What it prints</summary>"
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A piece of a chapter. ``kind`` is "prose", "code", "output" (of the block before) or "quote" (of the engine)."""

    kind: str
    text: str  # as it stands in the file
    body: str = ""  # what is between the fences
    how: str = ""  # what follows the kind on the fence


def pages() -> Path:
    """The folder of the chapters: in a checkout docs/course, in an installed package beside this file."""
    installed = Path(__file__).parent / "pages"
    return installed if installed.is_dir() else ROOT / "docs" / "course"


def path_of(number: str | int) -> Path:
    """The file of a chapter, 1 to 8. Raises `UsageError` for one that does not exist."""
    if str(number) not in map(str, CHAPTERS):
        raise UsageError(f"there is no chapter {str(number)!r}; they are 1 to {len(CHAPTERS)}")
    return next(pages().glob(f"{number}-*.md"))


def title(text: str) -> str:
    return text.split("\n", 1)[0].removeprefix("# ")


def blocks(text: str) -> list[Block]:
    """A chapter in its pieces; their texts, joined, are the chapter."""
    found: list[Block] = []
    end = 0
    for fence in FENCE.finditer(text):
        prose = text[end : fence.start()]
        if prose:
            found.append(Block("prose", prose))
        kind = "prose"
        if fence[1] == "python":
            kind = "quote" if SOURCE.search(prose) else "code"
        elif fence[1] == "text" and not DETAILS.sub("", prose).strip() and [b.kind for b in found[-2:]] == ["code", "prose"]:
            kind = "output"
        found.append(Block(kind, fence[0], fence[3], fence[2].strip()))
        end = fence.end()
    return [*found, Block("prose", text[end:])]


def output_of(parts: list[Block], i: int) -> int | None:
    """The place of what block i prints, if that stands below it; there is prose between, be it an empty line."""
    return i + 2 if i + 2 < len(parts) and parts[i + 2].kind == "output" else None


def plain(prose: str) -> str:
    """Prose for another place: without comments, folds, and links to other files."""
    return LINK.sub(r"\1", COMMENT.sub("", DETAILS.sub("", prose)))


# --- running -----------------------------------------------------------------------------------------------------------


def run(code: str, names: dict[str, Any], where: str) -> tuple[str, Any]:
    """What a block prints, and the value of the expression that it ends in, else None."""
    tree = ast.parse(code, where)
    last: Any = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        value = eval(compile(ast.Expression(last.value), where, "eval"), names) if last else None
    return printed.getvalue(), value


def ran(text: str, where: str) -> Iterator[tuple[int, Block, str, Any]]:
    """Runs a chapter: the index of each block of code, the block, what it printed, and its value."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for i, block in enumerate(blocks(text)):
        if block.kind == "code":
            yield i, block, *run(block.body, names, where)


def rewrite(text: str, where: str = "chapter") -> tuple[str, dict[str, str]]:
    """The chapter with its outputs, quotes and exercises anew, and its figures: name -> SVG."""
    parts, figures, added = blocks(text), {}, 0
    for i, _, printed, value in ran(text, where):
        i += added
        at = output_of(parts, i)
        fence = f"```text{' ' + parts[at].how if at and parts[at].how else ''}\n{trimmed(printed)}```"
        if at:
            parts[at] = replace(parts[at], text=fence)
        elif printed:
            new_ones = [Block("prose", "\n\n"), Block("output", fence)]
            if parts[i - 1].text.rstrip().rsplit("\n\n", 1)[-1].startswith(PREDICT):
                new_ones = [Block("prose", f"\n\n{OPENED}\n\n"), new_ones[1], Block("prose", "\n\n</details>")]
            parts[i + 1 : i + 1] = new_ones
            added += len(new_ones)
        if hasattr(value, "_repr_svg_"):
            figures[image_after(parts, i)] = value._repr_svg_()
    return renewed(parts), figures


def trimmed(printed: str) -> str:
    """Without spaces at the ends of lines."""
    return "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


def image_after(parts: list[Block], i: int) -> str:
    """The file of the image that follows block i."""
    for part in parts[i + 1 :]:
        if found := IMAGE.search(part.text):
            return found[2]
        if part.kind == "code":
            break
    raise UsageError(f"a drawing has no image behind it: {parts[i].body.strip().splitlines()[-1]}")


def renewed(parts: list[Block]) -> str:
    """The chapter with the quotes as the files have them, and its exercises."""
    texts = [part.text for part in parts]
    for i, part in enumerate(parts):
        if part.kind == "quote" and (found := SOURCE.search(parts[i - 1].text)):
            first, last, code = definition(found[1], found[2], bool(found[3]))
            link = f"[{found[1]}](../../{found[1]}), lines {first} to {last}:\n\n"
            texts[i - 1 : i + 1] = parts[i - 1].text[: found.end()] + link, f"```python\n{code}```"
    text = "".join(texts)
    return EXERCISES.sub(lambda found: found[1] + exercises_of(text), text)


def definition(file: str, name: str, code: bool = False) -> tuple[int, int, str]:
    """First line, last line and text of a definition: ``name`` or ``Class.name``. With ``code``, without its docstring."""
    text = (ROOT / file).read_text("utf-8")
    body: list[ast.stmt] = ast.parse(text).body
    node: Any = None
    for part in name.split("."):
        node = next((n for n in body if getattr(n, "name", None) == part), None)
        if node is None:
            raise UsageError(f"{file} has no {name}")
        body = node.body
    first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
    lines = text.splitlines(keepends=True)[first - 1 : node.end_lineno]
    if code and ast.get_docstring(node) is not None:
        doc = node.body[0]
        del lines[doc.lineno - first : doc.end_lineno - first + 1]
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return first, node.end_lineno, "".join(line[indent:] or "\n" for line in lines)


def exercises_of(text: str) -> str:
    """The list of a chapter's exercises."""
    number = title(text).split(".")[0]
    return "\n".join(
        f"- **{one.number} {one.title}** ({one.kind}): `tinyres exercise start {one.number}`"
        for one in exercises().values()
        if one.number.startswith(f"{number}.")
    )


# --- is it true? -------------------------------------------------------------------------------------------------------


def problems(text: str, folder: Path, where: str = "chapter") -> list[str]:
    """What in a chapter is not as it should be; ``folder`` has its figures."""
    parts, found = blocks(text), []
    for i, block, printed, value in ran(text, where):
        at = output_of(parts, i)
        first = f"{block.body.strip().splitlines()[0][:60]!r}"
        said, how = (parts[at].body, parts[at].how) if at else ("", "")
        if not agree(said, trimmed(printed), tolerance(how)):
            found.append(f"the block {first} prints\n{printed}and the page says\n{said}")
        if hasattr(value, "_repr_svg_"):
            path = folder / image_after(parts, i)
            if not path.exists() or words_of(path.read_text("utf-8")) != words_of(value._repr_svg_()):
                found.append(f"the drawing of {first} is not {path.name}")
    if renewed(parts) != text:
        found.append("quotes of the engine, or exercises, are not what they are now")
    return found


def tolerance(how: str) -> float:
    return float(how.removeprefix("within ").removesuffix("%")) / 100 if how else 0.0


def agree(page: str, printed: str, share: float = 0.0) -> bool:
    """Whether two outputs are the same, up to the last place of numbers, or up to a share of them."""
    if [NUMBER.sub("#", line).split() for line in page.splitlines()] != [
        NUMBER.sub("#", line).split() for line in printed.splitlines()
    ]:
        return False
    pairs = zip(NUMBER.findall(page), NUMBER.findall(printed), strict=True)
    return all(abs(size(a) - size(b)) <= max(1.01 * last_place(a), share * abs(size(a))) for a, b in pairs)


def size(number: str) -> float:
    return float(number.replace(",", ""))


def last_place(number: str) -> float:
    """What one in the last place is worth: 0.01 for 3.14, and nothing for whole numbers."""
    digits, _, power = number.lower().partition("e")
    decimals = len(digits.partition(".")[2])
    return 10.0 ** (int(power or 0) - decimals) if decimals or power else 0.0


def words_of(svg: str) -> list[str]:
    """The words of a drawing, without its numbers."""
    return [word for text in ET.fromstring(svg).itertext() for word in NUMBER.sub(" ", text).split()]
