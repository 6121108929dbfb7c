"""python -m portwatch."""

from portwatch.cli import main

main()
