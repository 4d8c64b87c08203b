"""The run directory: the only thing that passes between lorafit's verbs."""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lorafit.errors import RunError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafit.data import Template
    from lorafit.models import ResolvedModel
    from lorafit.recipe import Recipe
    from lorafit.recipe.settings import ModelSettings

LABELS_FILE = "labels.json"  # class names beside an adapter: config.json's `id2label` and `label2id`
LOCK_FILE = ".lock"
STATES = ("running", "interrupted", "finished", "failed")
REPORTED_VERSIONS = ("lorafit", "torch", "transformers", "accelerate", "datasets", "safetensors")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text: a reader, or a crash, sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def free_directory(directory: Path) -> Path:
    """`directory` itself if nothing is there, else the first free of `directory-2`, `directory-3`, ..."""
    directory = directory if directory.name else directory.resolve()  # "." has no name
    candidate, number = directory, 2
    while candidate.exists():
        candidate, number = directory.with_name(f"{directory.name}-{number}"), number + 1
    return candidate


class Run:
    """A directory with all there is to know about one training.

    `recipe.yaml` holds the settings, `run.json` state, versions and figures, `metrics.jsonl` an object a logged step,
    `adapter/` the best adapter so far in PEFT's format with its chat template or class names, `checkpoints/` what
    `--resume` needs, `updates.json` how large the learned update of each layer is. An evaluation adds `eval.json` (base
    against tuned), `eval_rows.json` (what each row adds to each metric) and `samples.jsonl` (answers side by side).

    Attributes:
        directory: its path.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    adapter = property(lambda self: self.directory / "adapter", doc="Folder of the best adapter so far.")
    checkpoints = property(lambda self: self.directory / "checkpoints", doc="Folder of the checkpoints.")

    @classmethod
    def create(cls, directory: str | Path, recipe: "Recipe", **record: Any) -> "Run":
        """Start a run in an empty or new directory.

        Args:
            directory: where; parents are made.
            recipe: the settings, written to `recipe.yaml`.
            **record: what `run.json` shall hold besides state, times, command and versions.

        Raises:
            RunError: Something is there already. A run is never overwritten.
        """
        directory = Path(directory)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            is_run = (directory / "run.json").is_file()
            resume = f"go on with it: {cls(directory).resume_command}\n  or " if is_run else ""
            raise RunError(
                f"{directory} is not empty and lorafit overwrites nothing;\n  {resume}"
                f"take a free name: --output-dir {shlex.quote(str(free_directory(directory)))}"
            )
        directory.mkdir(parents=True, exist_ok=True)
        run = cls(directory)
        write_atomically(directory / "recipe.yaml", recipe.to_yaml())
        started = {
            "state": "running",
            "started": _now(),
            "command": shlex.join(sys.argv),
            "versions": {"python": sys.version.split()[0], **{name: version(name) for name in REPORTED_VERSIONS}},
        }
        run._write_record({**started, **record})
        return run

    @classmethod
    def open(cls, directory: str | Path) -> "Run":
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
            except (ValueError, AttributeError) as error:
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
        try:
            lock = FileLock(self.directory / LOCK_FILE).acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"another process trains {self.directory}: wait for its end or stop it, or start a run with another "
                "--output-dir"
            ) from None
        try:
            with lock:
                yield
        finally:
            left = [file.name for file in self.directory.iterdir()] if self.directory.is_dir() else None
            if left in ([], [LOCK_FILE]):  # the run was discarded
                (self.directory / LOCK_FILE).unlink(missing_ok=True)
                self.directory.rmdir()

    @property
    def is_held(self) -> bool:
        """Whether a process trains this run now."""
        if not (self.directory / LOCK_FILE).exists():
            return False
        try:
            with FileLock(self.directory / LOCK_FILE).acquire(timeout=0):
                return False
        except (Timeout, PermissionError):  # where the lock may not be tried, the run is what it says it is
            return True

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        return f"lorafit train --resume {shlex.quote(str(self.directory))}"

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` holds."""
        return json.loads((self.directory / "run.json").read_text(encoding="utf-8"))

    def update(self, **changes: Any) -> None:
        """Set keys of `run.json`."""
        self._write_record({**self.record, **changes, "updated": _now()})

    @property
    def has_saved(self) -> bool:
        """Whether an adapter or a checkpoint is there."""
        return self.adapter.exists() or self.checkpoints.exists()

    def discard(self) -> None:
        """Remove the files of a run that never saved anything; `held` removes the directory then."""
        for name in ("recipe.yaml", "run.json", "metrics.jsonl"):
            (self.directory / name).unlink(missing_ok=True)

    def _write_record(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.directory / "run.json", json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False))

    @property
    def recipe(self) -> "Recipe":
        """The settings this run was started with."""
        from lorafit.recipe import load_recipe

        return load_recipe(str(self.directory / "recipe.yaml"))

    def settle(self, recipe: "Recipe") -> None:
        """Replace `recipe.yaml`, where training had to choose other settings."""
        write_atomically(self.directory / "recipe.yaml", recipe.to_yaml())

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one object to `metrics.jsonl`."""
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

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

    def rewind_metrics(self, step: int) -> None:
        """Drop what was logged after `step`: a resumed run logs it again."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        write_atomically(self.directory / "metrics.jsonl", "".join(kept))

    def save_adapter(self, model: "PreTrainedModel", beside: Mapping[str, str]) -> None:
        """Write the model's adapter to `adapter/`, and beside it what it is used with: texts by file name."""
        from lorafit.lora import save_adapter

        self.adapter.mkdir(exist_ok=True)
        for name, text in beside.items():
            write_atomically(self.adapter / name, text)
        save_adapter(model, self.adapter)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter has been saved."""
        return (self.adapter / "adapter_model.safetensors").is_file()

    def load_model(
        self, *, merge: bool = False, as_trained: bool = True, dtype: "torch.dtype | None" = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, Template]":
        """Load the base model with the run's adapter, its tokenizer and the template it was trained with.

        Args:
            merge: add the adapter to the base weights (faster to run, cannot be taken off again); where they are
                quantized it stays apart, as merging would round them again.
            as_trained: False loads the base weights whole where training held them quantized.
            dtype: of the weights; None is that of the training.

        Returns:
            The model in evaluation mode, its tokenizer, the template.

        Raises:
            RunError: The run has saved no adapter yet, or it is a classifier.
        """
        resolved, tokenizer, settings = self._base("sft")
        from lorafit.data import Template
        from lorafit.lora import load_adapter, merge_and_unload
        from lorafit.models import load_model

        loading = settings.loading if as_trained else {**settings.loading, "quantize": "none"}
        model = load_model(resolved, **(loading if dtype is None else {**loading, "dtype": dtype}))
        load_adapter(model, self.adapter)
        source = (self.adapter / "chat_template.jinja").read_text(encoding="utf-8")
        if merge and not getattr(model, "is_quantized", False):  # set by transformers where it has loaded it so
            merge_and_unload(model)  # in place
        return model.eval(), tokenizer, Template(tokenizer, source)

    def load_classifier(
        self, *, as_trained: bool = True, dtype: "torch.dtype | None" = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]":
        """Load the base model of a classification with the run's adapter and head, its tokenizer, the class names.

        Without its adapter the model has the head that training started from.

        Args:
            as_trained: False loads the base weights whole where training held them quantized.
            dtype: of the weights; None is that of the training.

        Raises:
            RunError: The run has saved no adapter yet, or it is no classification.
        """
        resolved, tokenizer, settings = self._base("classification")
        from transformers import set_seed

        from lorafit.lora import load_adapter
        from lorafit.models import load_classifier

        loading = settings.loading if as_trained else {**settings.loading, "quantize": "none"}
        set_seed(self.recipe.train.seed)
        model, _ = load_classifier(resolved, self.labels, **(loading if dtype is None else {**loading, "dtype": dtype}))
        load_adapter(model, self.adapter)
        return model.eval(), tokenizer, self.labels

    @property
    def is_classifier(self) -> bool:
        """Whether it tells classes; else it writes text."""
        return self.recipe.task == "classification"

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names of a classification, by id."""
        names = json.loads((self.adapter / LABELS_FILE).read_text(encoding="utf-8"))["id2label"]
        return tuple(names[str(i)] for i in range(len(names)))

    def load_tokenizer(self) -> "tuple[PreTrainedTokenizerBase, Template | None]":
        """The tokenizer, and the template that was trained; a classification has none.

        Raises:
            RunError: The run has saved no adapter yet.
        """
        _, tokenizer, _ = self._base(self.recipe.task)
        if self.is_classifier:
            return tokenizer, None
        from lorafit.data import Template

        return tokenizer, Template(tokenizer, (self.adapter / "chat_template.jinja").read_text(encoding="utf-8"))

    def find_base(self) -> "ResolvedModel":
        """Where the base model lies.

        Raises:
            ModelError: It is there no more.
        """
        from lorafit.models import resolve

        base = self.record["model"]
        return resolve(base["reference"], revision=base["revision"])

    def _base(self, task: str) -> "tuple[ResolvedModel, PreTrainedTokenizerBase, ModelSettings]":
        """Base model and tokenizer of a run that has an adapter for `task`."""
        if (own := self.recipe.task) != task:
            raise RunError(
                f"{self.directory} is a classification, which writes no text: measure it with "
                f"`lorafit eval {shlex.quote(str(self.directory))}`, or export it --to merged or peft"
                if own == "classification"
                else f"{self.directory} generates text and is no classification"
            )
        if not self.has_adapter:
            state = self.record["state"]
            raise RunError(f"{self.directory} (state: {state}) has no adapter yet; go on with: {self.resume_command}")
        from lorafit.models import load_tokenizer

        settings, resolved = self.recipe.model, self.find_base()
        return resolved, load_tokenizer(resolved, trust_remote_code=settings.trust_remote_code), settings


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
