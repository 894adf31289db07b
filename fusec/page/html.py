"""The document put into the template: one file, with all that it needs.

The browser is told to run nothing but the script whose digest the page states, to take styles from
nowhere else, and to fetch nothing.  The document is JSON in an element that is not run, in which
nothing can end the element; the script puts every word of it in as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

STYLES = ("style.css",)
SCRIPTS = ("dom.js", "graph.js", "charts.js", "page.js")

_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def page_html(document: Mapping[str, Any]) -> str:
    """The page for a document of `page_document`."""
    style = "".join(map(_file, STYLES))
    script = "(() => {\n'use strict';\n" + "".join(map(_file, SCRIPTS)) + "})();\n"
    parts = {
        "POLICY": _policy(style, script),
        "TITLE": html.escape(f"{document['name']} \u2013 fusec"),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _json(document),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _file("page.html"))


def _json(document: Mapping[str, Any]) -> str:
    """JSON in which no character means anything to HTML."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.translate(_ESCAPES)


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest())
    return f"'sha256-{digest.decode('ascii')}'"


def _file(name: str) -> str:
    return resources.files("fusec.page").joinpath(name).read_text(encoding="utf-8")
