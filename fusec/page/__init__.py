"""One HTML page about an artifact: what `fusec inspect --html` writes.

    blocks.py      equal layers as one block, and its graph before and after the passes
    document.py    everything that the page shows, as one JSON document
    html.py        the document put into the template, safely
    page.html, style.css, dom.js, graph.js, charts.js, page.js    the template

The page needs no network and runs only the scripts that it is written with; all it shows comes from
the document, and every word of it is put in as text.
"""

from __future__ import annotations

from fusec.page.document import page_document
from fusec.page.html import page_html

__all__ = ["page_document", "page_html"]
