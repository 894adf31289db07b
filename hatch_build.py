"""Links that an editable install needs; a source distribution comes without them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Links(BuildHookInterface[Any]):
    """Lets Python see `passes`, `kernels` and `runtime` inside of `fusec`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the links that are not there, for an editable install."""
        if version != "editable":
            return
        for name in ("passes", "kernels", "runtime"):
            link = Path(self.root, "fusec", name)
            if not os.path.lexists(link):
                link.symlink_to(Path("..", name), target_is_directory=True)
