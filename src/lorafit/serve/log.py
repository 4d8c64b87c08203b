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


def log_to(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Write lorafit's lines about serving, and warnings of uvicorn, to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLines())
    for name, lowest in (("lorafit.serve", level), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(lowest)
