"""`python -m comp` is `comp`."""

from comp.cli import main

main()
