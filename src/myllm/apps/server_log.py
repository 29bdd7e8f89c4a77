"""Logs as JSON, a line for each event, without anything that clients sent but the path."""

import json
import logging
from datetime import UTC, datetime

FIELDS = ("method", "path", "status", "seconds", "client")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the line of an event."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "message": record.getMessage(),
            **{name: getattr(record, name) for name in FIELDS if hasattr(record, name)},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json(level: int) -> None:
    """Log the server's events on standard error: all requests at the level INFO, faults at WARNING and above."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    logging.captureWarnings(True)
    for name, lowest in (("myllm.serve", level), (None, logging.WARNING)):  # None: all libraries
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(lowest)
