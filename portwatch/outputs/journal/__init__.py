"""The journal: an event log on disk, limited in age and size, which can be read while it is written.

Events are durable within a second. `writer` has the writing thread and its error handling, `store` has the
database, `schema` the format, and `reader` the queries.
"""

from portwatch.outputs.journal.reader import Reader
from portwatch.outputs.journal.writer import Journal

__all__ = ["Journal", "Reader"]
