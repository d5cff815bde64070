"""Tables and pictures in HTML, as notebooks show objects. Without colours of their own they fit light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], foot: Sequence[str] = (), left: int = 1) -> str:
    """A table of texts, which are escaped. The first ``left`` columns are of words, the others of numbers. A long one
    scrolls.
    """

    def line(tag: str, texts: Sequence[str]) -> str:
        sides = ["left" if i < left else "right" for i in range(len(texts))]
        cells = zip(sides, map(escape, texts), strict=True)
        return "<tr>" + "".join(f'<{tag} style="text-align:{side}">{text}</{tag}>' for side, text in cells) + "</tr>"

    head, body = line("th", heads), "".join(line("td", row) for row in rows)
    end = f"<tfoot>{line('th', foot)}</tfoot>" if foot else ""
    return (
        '<div style="max-height:32em;max-width:100%;overflow:auto">'
        f'<table style="white-space:nowrap"><thead>{head}</thead><tbody>{body}</tbody>{end}</table></div>'
    )


def strip(images: np.ndarray, title: str, height: int = 48) -> str:
    """Images, uint8 (N, 3, H, W), side by side as one picture of so many pixels' height; large ones are made smaller."""
    from PIL import Image

    row = np.concatenate(list(images), axis=2).transpose(1, 2, 0)
    picture, file = Image.fromarray(np.ascontiguousarray(row)), io.BytesIO()
    if picture.height > height:
        picture = picture.resize((picture.width * height // picture.height, height))
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    style = f"display:block;height:{height}px;width:auto;max-width:none;image-rendering:pixelated"
    return f'<img alt="{escape(title)}" title="{escape(title)}" style="{style}" src="data:image/png;base64,{data}">'
