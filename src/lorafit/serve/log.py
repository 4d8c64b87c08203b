"""Log lines as JSON objects; what was asked and answered is in none."""

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, TextIO

ACCESS = logging.getLogger("lorafit.serve.access")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= record.__dict__.get("facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to(stream: TextIO | None = None) -> None:
    """Write lorafit's lines about serving, and warnings of uvicorn, to `stream`, or to stderr."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines())
    for name, lowest in (("lorafit.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(lowest)
