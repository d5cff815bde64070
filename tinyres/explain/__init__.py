"""Looking at a backward pass: `watch` and `trace` (every step of the walk), `gradient_ledger` (what each shortcut passes
on), `draw` (the graph as a picture).

The walk here is its own, slow and complete: `tinyres.autograd` pays nothing for it.
"""

from tinyres.explain.draw import draw
from tinyres.explain.ledger import Ledger, Row, gradient_ledger, ledger_of
from tinyres.explain.trace import Arrival, Send, Step, Trace, trace
from tinyres.explain.watch import Seen, watch

__all__ = [
    "Arrival",
    "Ledger",
    "Row",
    "Seen",
    "Send",
    "Step",
    "Trace",
    "draw",
    "gradient_ledger",
    "ledger_of",
    "trace",
    "watch",
]


def __dir__() -> list[str]:
    return __all__
