"""The page of ``tinyres explain --html``: its data, computed by the engine, and the file that holds all of it."""

from tinyres.explain.page.assemble import write_page
from tinyres.explain.page.data import Job, collect

__all__ = ["Job", "collect", "write_page"]
