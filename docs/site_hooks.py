"""What MkDocs is told about pages that are written for a forge as well.

Pages outside of `docs/` that readers need become pages of the site, links to them follow, and other
links out of `docs/` become plain text.  A fence such as `console slow` or `json inspect`, whose
second word is for the tests, loses it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

OUTSIDE = {
    "passes/README.md": "writing-passes.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the site by the files that they are, from the top of the tree."""

FENCE = re.compile(r"^( *```[\w-]+)[^\n{`]*$", re.MULTILINE)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of `docs/`."""
    from mkdocs.structure.files import File

    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links and fences be those of the site."""
    docs = Path(config.docs_dir)
    name = page.file.src_uri
    source = {made: ROOT / given for given, made in OUTSIDE.items()}.get(name, docs / name)
    up = "../" * name.count("/")

    def link(found: re.Match[str]) -> str:
        if "://" in found[2]:
            return found[0]
        target = (source.parent / found[2]).resolve()
        there = OUTSIDE.get(target.relative_to(ROOT).as_posix())
        if target.is_relative_to(docs):
            there = target.relative_to(docs).as_posix()
        return found[1] if there is None else f"[{found[1]}]({up}{there}{found[3] or ''})"

    return FENCE.sub(r"\1", LINK.sub(link, markdown))
