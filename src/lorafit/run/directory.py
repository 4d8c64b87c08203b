"""The files of a run directory."""

import errno
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import AdapterFileError, RunError
from lorafit.files import CHECKSUMS_FILE, checksum_problems, read_checksums, replace_files, sha256_of, write_atomically
from lorafit.redact import redacted, redacted_values
from lorafit.run.lock import LOCK_FILE, hold, is_held

if TYPE_CHECKING:
    from typing_extensions import Self

    from lorafit.recipe import Recipe

LABELS_FILE = "labels.json"  # beside an adapter: config.json's `id2label`, `label2id` and `problem_type`
TEMPLATE_FILE = "chat_template.jinja"  # beside the adapter of a model that generates text
OWN_FILES = ("recipe.yaml", "run.json", "metrics.jsonl")  # of a run that has saved nothing yet
SINGLE = "single_label_classification"  # of adapters that older versions wrote, which do not say
STATES = ("running", "interrupted", "finished", "failed")
REPORTED_VERSIONS = ("lorafit", "torch", "transformers", "accelerate", "datasets", "safetensors")


def free_directory(directory: Path) -> Path:
    """`directory` itself if nothing is there, else the first free of `directory-2`, `directory-3`, ..."""
    directory = directory if directory.name else directory.resolve()  # "." has no name
    candidate, number = directory, 2
    while candidate.exists():
        candidate, number = directory.with_name(f"{directory.name}-{number}"), number + 1
    return candidate


class RunDirectory:
    """A directory with all there is to know about one training.

    `recipe.yaml` holds the settings, `run.json` state, versions and figures, `metrics.jsonl` an object a logged step,
    `adapter/` the best adapter so far in PEFT's format with its chat template or class names and the SHA-256 of each
    file, `checkpoints/` what `--resume` needs, `updates.json` how large the learned update of each layer is. An
    evaluation adds `eval.json` (base against tuned), `eval_rows.json` (what each row adds to each metric) and
    `samples.jsonl` (answers side by side); where they were asked for, `eval_also.json` (the same on rows of other
    domains) and `eval_suite.json` (lm-eval's tasks).

    Attributes:
        directory: its path.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    adapter = property(lambda self: self.directory / "adapter", doc="Folder of the best adapter so far.")
    checkpoints = property(lambda self: self.directory / "checkpoints", doc="Folder of the checkpoints.")

    @classmethod
    def create(cls, directory: str | Path, recipe: "Recipe", **record: Any) -> "Self":
        """Start a run in an empty or new directory.

        Args:
            directory: where; parents are made.
            recipe: the settings, written to `recipe.yaml`.
            **record: what `run.json` shall hold besides state, times, command and versions.

        Raises:
            RunError: Something is there already. A run is never overwritten.
        """
        run = cls(Path(directory))
        run.check_free()
        run.directory.mkdir(parents=True, exist_ok=True)
        with run.held():
            run.check_free()  # another process may have been first
            run.clean()
            write_atomically(run.directory / "recipe.yaml", recipe.to_yaml())
            run._write_record(
                {
                    "state": "running",
                    "started": _now(),
                    "command": redacted(shlex.join(sys.argv)),
                    "versions": present_versions(),
                    **record,
                }
            )
        return run

    def check_free(self) -> None:
        """Check that a run can be started here: nothing is there, or what a start that was killed has left.

        Raises:
            RunError: Something is there; the message says how to go on.
        """
        if not self.directory.exists():
            return
        found = {file.name for file in self.directory.iterdir()} if self.directory.is_dir() else {""}
        if not found or (LOCK_FILE in found and found.isdisjoint(OWN_FILES[1:]) and all(map(_is_of_a_start, found))):
            return
        unfinished = "run.json" in found and not self._is_finished
        resume = f"go on with it: {self.resume_command}\n  or " if unfinished else ""
        raise RunError(
            f"{self.directory} is not empty and lorafit overwrites nothing;\n  {resume}"
            f"take a free name: --output-dir {shlex.quote(str(free_directory(self.directory)))}"
        )

    @property
    def _is_finished(self) -> bool:
        try:
            return self.record.get("state") == "finished"
        except ValueError:  # no record of ours
            return False

    @classmethod
    def open(cls, directory: str | Path) -> "Self":
        """Open an existing run.

        Raises:
            RunError: It is missing or not a run; the message lists all that is wrong.
        """
        run = cls(Path(directory))
        if not run.directory.is_dir():
            raise RunError(f"{run.directory} is not a directory; name the folder that `lorafit train` wrote")
        names = "run.json", "recipe.yaml"
        problems = [f"{name} is missing" for name in names if not (run.directory / name).is_file()]
        if not problems:
            try:
                state = run.record.get("state")
                problems = [] if state in STATES else [f"run.json has the state {state!r}, none of {', '.join(STATES)}"]
            except ValueError as error:
                problems = [f"run.json is not a JSON object ({error})"]
        if problems:
            raise RunError(f"{run.directory} is not a lorafit run: {'; '.join(problems)}")
        return run

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no other process train this run within the block; the system lets go where this process ends before.

        Raises:
            RunError: Another process trains it.
        """
        with hold(self.directory):
            yield

    @property
    def is_held(self) -> bool:
        """Whether a process trains this run now."""
        return is_held(self.directory)

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        return f"lorafit train --resume {shlex.quote(str(self.directory))}"

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` holds.

        Raises:
            ValueError: It is no JSON object.
        """
        value = json.loads((self.directory / "run.json").read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
        return value

    def update(self, **changes: Any) -> None:
        """Set keys of `run.json`."""
        self._write_record({**self.record, **changes, "updated": _now()})

    @property
    def has_saved(self) -> bool:
        """Whether an adapter or a checkpoint is there."""
        return self.adapter.exists() or self.checkpoints.exists()

    def discard(self) -> None:
        """Remove the files of a run that never saved anything; `held` removes the directory then."""
        for name in OWN_FILES:
            (self.directory / name).unlink(missing_ok=True)

    def clean(self) -> None:
        """Delete what a process that ended while it wrote has left; only the one that holds the run may."""
        for name in (*OWN_FILES, "updates.json", "samples.jsonl", f"adapter/{CHECKSUMS_FILE}"):
            file = self.directory / name
            for left in file.parent.glob(f".{file.name}.*"):
                left.unlink()
        for left in (self.directory / "samples").glob(".*.png"):
            left.unlink()
        for left in self.directory.glob(".adapter.*"):
            shutil.rmtree(left)

    def check_there(self) -> None:
        """Check that the folder has not vanished, as a disk that was taken out leaves an empty one behind.

        Raises:
            FileNotFoundError: It has.
        """
        if not (self.directory / "run.json").is_file():
            raise FileNotFoundError(errno.ENOENT, "the folder of the run is gone", str(self.directory))

    def _write_record(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(redacted_values(record), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.directory / "run.json", text)

    @property
    def recipe(self) -> "Recipe":
        """The settings this run was started with."""
        from lorafit.recipe import load_recipe

        return load_recipe(str(self.directory / "recipe.yaml"))

    def settle(self, recipe: "Recipe") -> None:
        """Replace `recipe.yaml`, where training had to choose other settings."""
        write_atomically(self.directory / "recipe.yaml", recipe.to_yaml())

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one object to `metrics.jsonl`, or nothing where it does not fit on the disk."""
        rest = memoryview(f"{json.dumps(row, allow_nan=False)}\n".encode())
        with (self.directory / "metrics.jsonl").open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(before)
                raise

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The objects of `metrics.jsonl`; a last line that a crash cut short is left out."""
        path = self.directory / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
            if line.endswith("\n"):
                yield json.loads(line)

    @property
    def results(self) -> dict[str, Any]:
        """`eval.json`: `{"metric": {"base", "tuned", "difference", "interval": [low, high]}}`; empty without it."""
        return self._read("eval.json")

    @property
    def scored_rows(self) -> dict[str, Any]:
        """`eval_rows.json`: `{"metric": {"rows_sha256", **Scores.to_dict()}}`; empty without it."""
        return self._read("eval_rows.json")

    @property
    def also(self) -> dict[str, Any]:
        """`eval_also.json`: `{"file name": {"file", "rows", "metrics": as in eval.json}}`; empty without it."""
        return self._read("eval_also.json")

    @property
    def suite(self) -> dict[str, Any]:
        """`eval_suite.json`: `{"lm_eval": version, "tasks": {"task": {"metric": ...}}}`; empty without it."""
        return self._read("eval_suite.json")

    @property
    def updates(self) -> dict[str, Any]:
        """`updates.json`: `{"layers": [{"module", "update_norm", "weight_norm"}]}`, Frobenius; empty without it."""
        return self._read("updates.json")

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of `samples.jsonl`: `prompt`, `reference` (or null), `base` and `tuned`; none without it."""
        path = self.directory / "samples.jsonl"
        if not path.exists():
            return []
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def _read(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all of `metrics.jsonl`: a resumed run begins with what its checkpoint knows."""
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        write_atomically(self.directory / "metrics.jsonl", "".join(lines))

    def replace_adapter(self, write: Callable[[Path], object]) -> None:
        """Replace the files of `adapter/` and their checksums by those that `write` puts into the folder it is given.

        Raises:
            OSError: They cannot be written; the adapter of before is whole.
        """
        replace_files(self.adapter, write)

    def check_adapter(self) -> None:
        """Check that the files of `adapter/` are, bit for bit, those that training wrote.

        Adapters without `checksums.json`, which put there others than `lorafit train`, are taken as they are.

        Raises:
            AdapterFileError: They are not, all of them named.
        """
        if not (self.adapter / CHECKSUMS_FILE).exists():
            return
        if problems := list(checksum_problems(self.adapter, ())):
            raise AdapterFileError(
                f"{self.adapter} is damaged or was changed: {'; '.join(problems)}. Put the files back"
                f"{self._whole_copy()}; if the change is yours, delete {self.adapter / CHECKSUMS_FILE}"
            )

    def _whole_copy(self) -> str:
        """Where the weights lie as they were written, in words."""
        weights = self.adapter / "adapter_model.safetensors"
        try:
            allowed = read_checksums(self.adapter).get(weights.name, [])
        except (OSError, ValueError):
            return ""
        copies = (file for file in self.checkpoints.glob("checkpoint-*/*.safetensors") if sha256_of(file) in allowed)
        copy = next(copies, None)
        return "" if copy is None else f" (the weights: cp {shlex.quote(str(copy))} {shlex.quote(str(weights))})"

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter has been saved."""
        return (self.adapter / "adapter_model.safetensors").is_file()

    @property
    def is_classifier(self) -> bool:
        """Whether it tells classes of texts; else it tags words or writes text."""
        return self.recipe.task == "classification"

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's classes, by id."""
        names = self._saved_labels["id2label"]
        return tuple(names[str(i)] for i in range(len(names)))

    @property
    def problem_type(self) -> Any:
        """What a classifier's labels are, as transformers names it."""
        return self._saved_labels.get("problem_type", SINGLE)

    @property
    def _saved_labels(self) -> dict[str, Any]:
        return json.loads((self.adapter / LABELS_FILE).read_text(encoding="utf-8"))

    def check_has_adapter(self, *tasks: str) -> None:
        """Refuse a run that cannot answer.

        Args:
            tasks: of the recipe, such as "sft"; one of them must be the run's.

        Raises:
            RunError: It is of another task, has saved no adapter yet, or the adapter's files were changed.
        """
        if (own := self.recipe.task) not in tasks:
            where = shlex.quote(str(self.directory))
            raise RunError(
                {
                    "text_to_image": f"{self.directory} is a text-to-image model, which draws and is no {tasks[0]}: "
                    f"measure it with `lorafit eval {where}`",
                    "classification": f"{self.directory} is a classification, which writes no text: measure it with "
                    f"`lorafit eval {where}`, or export it --to merged or peft",
                    "token_classification": f"{self.directory} is a token classification, which writes no text and is "
                    f"not exported yet: measure it with `lorafit eval {where}`, or load its adapter/ with PEFT",
                    "seq2seq": f"{self.directory} is a sequence-to-sequence model, which generates text and is no "
                    f"{tasks[0]}; it holds no conversation and is not exported yet: ask it with `lorafit generate "
                    f"{where} --prompt '...'`, or load its adapter/ with PEFT",
                }.get(own, f"{self.directory} generates text and is no {tasks[0]}")
            )
        if not self.has_adapter:
            state = self.record["state"]
            raise RunError(f"{self.directory} (state: {state}) has no adapter yet; go on with: {self.resume_command}")
        self.check_adapter()


def present_versions() -> dict[str, str]:
    """Of Python and what computes."""
    return {"python": sys.version.split()[0], **{name: version(name) for name in REPORTED_VERSIONS}}


def _is_of_a_start(name: str) -> bool:
    """Whether a file may be what a process that was killed in `Run.create` has left."""
    return name in (LOCK_FILE, "recipe.yaml") or name.startswith((".recipe.yaml.", ".run.json."))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
