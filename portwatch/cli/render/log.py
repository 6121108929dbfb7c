"""The log of serve on stderr, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys

from portwatch.timestamps import iso_time


def stderr_handler(*, as_json: bool) -> logging.Handler:
    """Return a handler that writes to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else logging.Formatter("portwatch: %(message)s"))
    return handler


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": iso_time(int(record.created * 1e9)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields)
