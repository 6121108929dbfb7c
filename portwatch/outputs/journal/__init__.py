"""The journal: every event on disk within a second, kept by age and size, readable while it is written."""

from portwatch.outputs.journal.reader import Reader
from portwatch.outputs.journal.writer import Journal

__all__ = ["Journal", "Reader"]
