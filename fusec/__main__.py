"""The process of the command `fusec`; `python -m fusec` is the same."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command that the arguments of the process name."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # What follows takes a moment, and leaves nothing behind that would have to be removed.
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    from fusec.cli import main as run

    run()


if __name__ == "__main__":
    main()
