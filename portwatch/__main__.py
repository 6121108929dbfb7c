"""Entry point of `python -m portwatch`."""

from portwatch.cli.main import main

main()
