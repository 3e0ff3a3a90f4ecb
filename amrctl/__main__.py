"""`python -m amrctl`."""

from amrctl.cli.app import main

main()
