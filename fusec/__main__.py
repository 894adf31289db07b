"""`python -m fusec` is the command `fusec`."""

from fusec.cli import main

main()
