"""Prepared rows on disk, under a key of all they depend on: complete and undamaged, or not there.

A folder `rows/KEY` in lorafit's cache holds `train.arrow` and `held_out.arrow` (Arrow streams, read memory-mapped),
`rows.json` (held-out rows and summary) and `sha256.json` (of the other three). It is the user's to delete.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets.table import MemoryMappedTable

from lorafit.data.prepared import Prepared, token_dataset
from lorafit.data.rows import PLACE, Row
from lorafit.data.summary import Summary
from lorafit.data.template import Template
from lorafit.models.cache import build_once, cache_directory, sha256

LIMIT = 4 << 30
"""Bytes of all kept rows together, about 500 million tokens; those not used for longest go first."""
ABANDONED = 24 * 3600
"""Seconds after which a half-written folder is one that a killed process left."""
TABLES = ("train", "held_out")
FILES = (*(f"{name}.arrow" for name in TABLES), "rows.json")
DIGESTS = "sha256.json"


@dataclass(frozen=True)
class Store:
    """The place of one preparation.

    Attributes:
        key: See `key.rows_key`.
        files: Names as read, training files first: places of rows are stored as a number among them, so that files
            may move.
        template: What rendered the rows; its own notes are not stored.
        on_message: Takes a line for the user.
    """

    key: str
    files: Sequence[str]
    template: Template
    on_message: Callable[[str], None]

    @property
    def folder(self) -> Path:
        """Where the rows lie, or will lie."""
        return rows_directory() / self.key

    def load(self) -> Prepared | None:
        """The rows, or None where they are not (or no longer whole, which is told)."""
        if not self.folder.is_dir():
            return None
        try:
            problems = damages(self.folder)
            stored = None if problems else json.loads((self.folder / "rows.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems, stored = [str(error)], None
        if stored is None:
            self.on_message(f"The prepared rows in {self.folder} are damaged ({'; '.join(problems)}): made again.")
            _remove(self.folder)
            return None
        (self.folder / DIGESTS).touch()  # used now
        tables = (MemoryMappedTable.from_file(str(self.folder / f"{name}.arrow")) for name in TABLES)
        train, held_out = (token_dataset(table, f"{self.key[:32]}-{i}") for i, table in enumerate(tables))
        return Prepared(train, held_out, self._rows(stored["rows"]), self.template, self._summary(stored["summary"]))

    def save(self, prepared: Prepared) -> Prepared:
        """Keeps rows; they come back memory-mapped, or as they are where the disk does not take them (that is told)."""
        # a date becomes a text, so that it does not come back equal
        text = json.dumps({"rows": self._plain_rows(prepared), "summary": self._plain_summary(prepared)}, default=str)
        if self._rows(json.loads(text)["rows"]) != prepared.held_out_rows:
            self.on_message("The prepared rows are not kept: they hold values that JSON does not (dates, NaN, ...).")
            return prepared
        first = not rows_directory().is_dir()
        try:
            rows_directory().mkdir(parents=True, exist_ok=True)
            rows_directory().chmod(0o700)  # whoever else reads this disk: these are someone's rows
            build_once(self.folder, lambda folder: _write(folder, prepared, text))
            prune(keep=self.folder)
        except OSError as error:
            self.on_message(f"The prepared rows cannot be kept in {rows_directory()}: {error}")
            return prepared
        if first:
            self.on_message(
                f"Prepared rows are kept in {rows_directory()}, to start at once the next time (data.cache=false keeps "
                "none; the folder may be deleted)."
            )
        return self.load() or prepared

    def _plain_rows(self, prepared: Prepared) -> list[dict[str, Any]]:
        return [{**vars(row), "where": self._number(row.where)} for row in prepared.held_out_rows]

    def _rows(self, stored: list[dict[str, Any]]) -> list[Row]:
        return [Row(**{**row, "where": self._place(row["where"])}) for row in stored]

    def _plain_summary(self, prepared: Prepared) -> dict[str, Any]:
        summary = prepared.summary
        dropped = {reason: [self._number(place) for place in places] for reason, places in summary.dropped.items()}
        warned = {
            kind: {**found, "places": [self._number(place) for place in found["places"]]}
            for kind, found in summary.warned.items()
        }
        notes = summary.notes[len(self.template.notes) :]
        return {**asdict(summary), "dropped": dropped, "warned": warned, "notes": notes}

    def _summary(self, stored: dict[str, Any]) -> Summary:
        summary = Summary(**stored)
        dropped = {why: [self._place(place) for place in places] for why, places in stored["dropped"].items()}
        sample = [(text, trained) for text, trained in summary.sample]
        warned = {
            kind: {**found, "places": [self._place(place) for place in found["places"]]}
            for kind, found in stored["warned"].items()
        }
        return replace(
            summary, dropped=dropped, warned=warned, notes=[*self.template.notes, *summary.notes], sample=sample
        )

    def _number(self, where: str) -> tuple[int, str]:
        found = PLACE.fullmatch(where)
        assert found is not None, f"{where!r} is no place"
        return self.files.index(found[1]), where[found.end(1) :]

    def _place(self, stored: Sequence[Any]) -> str:
        number, rest = stored
        return f"{self.files[number]}{rest}"


def rows_directory() -> Path:
    """Where all prepared rows are kept."""
    return cache_directory() / "rows"


def damages(folder: Path) -> list[str]:
    """What is wrong with stored rows; empty when all bytes are those that were written.

    Raises:
        OSError: A file is missing.
        ValueError: The list of digests is no JSON.
    """
    digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    if not isinstance(digests, dict):
        return [f"{DIGESTS} has changed"]
    return [f"{name} has changed" for name in FILES if digests.get(name) != sha256(folder / name)]


def prune(keep: Path) -> None:
    """Deletes the rows not used for longest until all fit into `LIMIT`, and what killed processes left half written.

    Args:
        keep: A folder that stays, however large.
    """
    now, total = time.time(), 0
    folders = [folder for folder in rows_directory().iterdir() if folder.is_dir()]
    for folder in sorted(folders, key=lambda folder: (folder != keep, -_used(folder))):
        if folder.name.startswith("."):
            if now - _used(folder) > ABANDONED:
                _remove(folder)
            continue
        total += sum(file.stat().st_size for file in folder.iterdir())
        if total > LIMIT and folder != keep:
            _remove(folder)


def _used(folder: Path) -> float:
    digests = folder / DIGESTS
    return (digests if digests.exists() else folder).stat().st_mtime


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # a file another process has open may stay; what remains reads as damaged


def _write(folder: Path, prepared: Prepared, text: str) -> None:
    for name, rows in zip(TABLES, (prepared.train, prepared.held_out), strict=True):
        table = rows.data.table
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    (folder / "rows.json").write_text(text, encoding="utf-8")
    digests = {name: sha256(folder / name) for name in FILES}
    (folder / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
