"""A chapter as slides for a lecture: one HTML file that needs nothing else."""

from __future__ import annotations

import html
import re
from pathlib import Path

from tinyres.course.chapter import PREDICT, blocks, plain, title
from tinyres.explain.svg import data_uri

KEPT = ("#", ">", "**", "- ", "1.", "|", "    ", "!")  # how a paragraph begins that stands on a slide; others are notes

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b2127; --soft: #59626c; --card: #f3f5f7; --blue: #08519c; }
@media (prefers-color-scheme: dark) { :root { --ground: #11151a; --ink: #e8ebee; --soft: #9da7b1; --card: #1c232b;
  --blue: #6baed6; } }
* { box-sizing: border-box; }
html { scroll-snap-type: y proximity; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 1.35rem/1.5 system-ui, -apple-system, "Segoe UI",
  sans-serif; }
section { min-height: 100vh; padding: 2.5rem max(1.25rem, calc(50vw - 34rem)); scroll-snap-align: start; display: flex;
  flex-direction: column; justify-content: center; border-bottom: 1px solid var(--card); }
section > * { margin: .4rem 0; max-width: 100%; }
h1 { font-size: 2.6rem; line-height: 1.15; } h2 { font-size: 1.5rem; color: var(--soft); font-weight: 600; }
blockquote { border-left: 4px solid var(--blue); padding-left: 1rem; margin-left: 0; font-size: 1.1em; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 8px; overflow-x: auto; font-size: 1.05rem;
  line-height: 1.4; }
pre.output { border-left: 4px solid var(--blue); } .hidden { visibility: hidden; }
code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
img { background: #fff; border-radius: 8px; max-height: 62vh; object-fit: contain; align-self: center; width: 100%; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; }
aside { color: var(--soft); font-size: 1rem; border-top: 1px solid var(--soft); padding-top: .4rem; } body:not(.notes) aside
  { display: none; }
a { color: var(--blue); } .help { font-size: .9rem; color: var(--soft); }
@media (max-width: 40rem) { body { font-size: 1.1rem; } h1 { font-size: 1.9rem; } pre { font-size: .85rem; } }
@media print { section { break-after: page; min-height: 0; } .hidden { visibility: visible; } body:not(.notes) aside
  { display: block; } }
"""

SCRIPT = """
const slides = [...document.querySelectorAll("section")];
const current = () => slides.reduce((best, s) => Math.abs(s.getBoundingClientRect().top) <
  Math.abs(best.getBoundingClientRect().top) ? s : best);
function go(step) {
  const here = current(), hidden = here.querySelector(".hidden");
  if (step > 0 && hidden) { hidden.classList.remove("hidden"); return; }
  const next = slides[slides.indexOf(here) + step];
  if (next) next.scrollIntoView();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const forward = ["ArrowRight", " ", "PageDown", "Enter"], backward = ["ArrowLeft", "PageUp", "Backspace"];
  if (event.target.tagName === "A" && event.key === "Enter") return;
  if (forward.includes(event.key)) { event.preventDefault(); go(1); }
  if (backward.includes(event.key)) { event.preventDefault(); go(-1); }
  if (event.key === "n") document.body.classList.toggle("notes");
});
document.addEventListener("click", (event) => { if (!event.target.closest("a") && !getSelection().toString()) go(1); });
"""


def slides(text: str, folder: Path) -> str:
    """The chapter as slides; ``folder`` has its figures. A slide per heading, quotation, block of code or figure.

    Code comes first, and what it prints with the next key. The prose between is notes.
    """
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark").enable("table")
    made: list[str] = []
    heading, notes, asked = "", "", False
    shown: list[str] = []

    def close() -> None:
        nonlocal notes
        if shown:
            said = markdown.render(notes)
            aside = f"<aside>{said}</aside>" if said else ""
            made.append(f"<section>{heading}{''.join(shown)}{aside}</section>")
            shown.clear()
            notes = ""

    for block in blocks(text):
        if block.kind in ("code", "quote"):
            if block.kind == "code" and not asked:
                close()
            asked = False
            shown.append(f"<pre><code>{html.escape(block.body)}</code></pre>")
        elif block.kind == "output":
            shown.append(f'<pre class="output hidden"><code>{html.escape(block.body)}</code></pre>')
        else:
            for part in re.split(r"\n\n+", plain(block.text)):
                if part.startswith(("# ", "## ")):
                    close()
                    level = 1 if part.startswith("# ") else 2
                    words = html.escape(part.lstrip("# ").strip())
                    heading = f"<h{level}>{words}</h{level}>"
                    shown += [] if level == 2 else ['<p class="help">Arrow keys: forward and back. n: notes.</p>']
                elif part.startswith(KEPT) or part.startswith("```"):
                    if part.startswith(("!", ">", "**")):
                        close()
                    asked = part.startswith(PREDICT)  # the code that answers stays with it
                    shown.append(markdown.render(part))
                elif part.strip():
                    notes += f"{part}\n\n"
    close()
    body = "\n".join(made)
    body = re.sub(r'(?<=src=")figures/[^"]+', lambda found: data_uri((folder / found[0]).read_bytes()), body)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title(text))}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
