"""What tests of `check` share: rows as files, and findings by kind."""

import json
from pathlib import Path


def write(file: Path, rows: list) -> str:
    """Rows as lines of JSON; bytes are a line as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return str(file)


def found(report) -> dict[str, list[tuple[str, str]]]:
    """Place, without folder, and detail of each finding, by kind."""
    return {
        kind: [(finding.where.rpartition("/")[2], finding.detail) for finding in findings]
        for kind, findings in report.findings.kept.items()
        if findings
    }
