"""What one run came to: its metrics and what it cost, as its files tell."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import LorafitError, RunError
from lorafit.metrics.scores import Measured, Scores, measured_to_dict
from lorafit.run import Run

OF_EVERY_LANGUAGE_MODEL = ("loss", "perplexity", "token_accuracy")
KINDS_OF_LABELS = {"multi_label_classification": " of several classes a row", "regression": " of amounts"}


@dataclass(frozen=True)
class Cost:
    """What a run took; None where its files do not tell.

    Attributes:
        seconds: from the loaded rows to the end of training, evaluations included.
        steps: optimizer steps.
        tokens: trained through, without padding.
        tokens_per_second: of the training steps alone.
        peak_memory_bytes: of the process, or of the GPU.
        trainable: parameters that were trained.
        adapter_bytes: of the adapter's files.
        device: where, by its name.
    """

    seconds: float | None
    steps: int | None
    tokens: int | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    trainable: int | None
    adapter_bytes: int | None
    device: str | None

    @classmethod
    def of(cls, run: Run) -> "Cost":
        """Read it from a run."""
        record = run.record
        figures: Mapping[str, Any] = record.get("figures") or {}
        files = [file for file in run.adapter.rglob("*") if file.is_file()]
        return cls(
            seconds=figures.get("wall_seconds"),
            steps=figures.get("steps"),
            tokens=figures.get("tokens"),
            tokens_per_second=figures.get("tokens_per_second"),
            peak_memory_bytes=figures.get("peak_memory_bytes"),
            trainable=(record.get("parameters") or {}).get("trainable"),
            adapter_bytes=sum(file.stat().st_size for file in files) if files else None,
            device=(record.get("plan") or {}).get("device"),
        )


@dataclass(frozen=True)
class RunFigures:
    """One run.

    Attributes:
        name: what tells it from the other runs.
        directory: its path.
        task: what it learned, in words: its recipe's task and, of a classification, the kind of its labels.
        state: one of `lorafit.run.STATES`.
        metrics: base against tuned, from `eval.json`; empty where it was not measured.
        scores: what each row adds to each metric, from `eval_rows.json`; empty where an older version measured.
        rows_sha256: of the rows, or the prompts, that each metric of `scores` was measured on.
        cost: what it took.
    """

    name: str
    directory: Path
    task: str
    state: str
    metrics: Mapping[str, Measured]
    scores: Mapping[str, Scores]
    rows_sha256: Mapping[str, str]
    cost: Cost

    @classmethod
    def of(cls, run: Run, name: str) -> "RunFigures":
        """Read a run.

        Raises:
            RunError: One of its files of an evaluation is broken.
        """
        metrics = metrics_of(run)
        try:
            scores = {metric: Scores.from_dict(value) for metric, value in run.scored_rows.items()}
            sha = {metric: str(value["rows_sha256"]) for metric, value in run.scored_rows.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # JSON of any shape
            raise _broken(run, "eval_rows.json", error) from error
        kind = run.record["data"]["summary"].get("problem_type")  # of a classification alone
        task = run.recipe.task + KINDS_OF_LABELS.get(kind, "")
        return cls(name, run.directory, task, run.record["state"], metrics, scores, sha, Cost.of(run))

    @property
    def main(self) -> str | None:
        """The metric that decides; None where nothing was measured."""
        return main_metric(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "run": str(self.directory),
            "task": self.task,
            "state": self.state,
            "metrics": measured_to_dict(self.metrics),
            "rows_sha256": dict(self.rows_sha256),
            "cost": asdict(self.cost),
        }


def metrics_of(run: Run) -> dict[str, Measured]:
    """`eval.json` as `Measured`.

    Raises:
        RunError: It is broken.
    """
    try:
        return {
            name: Measured(value["base"], value["tuned"], value["difference"], tuple(value["interval"]))
            for name, value in run.results.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # JSON of any shape
        raise _broken(run, "eval.json", error) from error


def main_metric(metrics: Mapping[str, Any]) -> str | None:
    """The metric that a task is about: the first that not every language model has, else the loss.

    That is a classifier's accuracy, the first metric of generated answers where the recipe names some, and the loss
    elsewhere.
    """
    own = [name for name in metrics if name not in OF_EVERY_LANGUAGE_MODEL]
    return own[0] if own else next(iter(metrics), None)


def open_runs(directories: Sequence[Path]) -> list[Run]:
    """Open several runs, at least two different ones.

    Raises:
        RunError: All that is wrong with any of them, a line each.
    """
    problems, runs = [], []
    if len(directories) < 2:
        problems.append("comparing takes at least two runs: lorafit compare RUN RUN")
    seen: dict[Path, Path] = {}
    for directory in directories:
        if (first := seen.get(directory.resolve())) is not None:
            problems.append(f"{directory} is given twice" + (f", first as {first}" if first != directory else ""))
            continue
        seen[directory.resolve()] = directory
        try:
            run = Run.open(directory)
            run.recipe  # noqa: B018  reads it
            runs.append(run)
        except LorafitError as error:
            problems.append(str(error))
    raise_all(problems)
    return runs


def read_runs(runs: Sequence[Run]) -> list[RunFigures]:
    """The figures of several runs.

    Raises:
        RunError: All files of evaluations that are broken, a line each.
    """
    problems, found = [], []
    for run, name in zip(runs, names_of([run.directory for run in runs]), strict=True):
        try:
            found.append(RunFigures.of(run, name))
        except RunError as error:
            problems.append(str(error))
    raise_all(problems)
    return found


def raise_all(problems: Sequence[str]) -> None:
    """One error for all problems, if there are any."""
    if problems:
        raise RunError(problems[0] if len(problems) == 1 else "\n  ".join([f"{len(problems)} problems:", *problems]))


def names_of(directories: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell all of them apart."""
    paths = [directory.resolve().parts for directory in directories]
    for count in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(directory) for directory in directories]


def _broken(run: Run, files: str, error: Exception) -> RunError:
    words = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
    again = f"`lorafit eval {shlex.quote(str(run.directory))}` writes it again"
    return RunError(f"{run.directory}: {files} cannot be read ({words}); {again}")
