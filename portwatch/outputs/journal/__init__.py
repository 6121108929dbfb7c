"""The journal: an event log on disk, limited by age and size, readable while it is written.

Events are durable within a second. `writer` has the thread and its error handling, `store` the database,
`schema` the format, `reader` the queries.
"""

from portwatch.outputs.journal.reader import Reader
from portwatch.outputs.journal.writer import Journal

__all__ = ["Journal", "Reader"]
