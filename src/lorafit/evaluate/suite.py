"""Base against tuned on public benchmarks, which EleutherAI's lm-eval (extra `lorafit[lm-eval]`) runs on our model."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.errors import ConfigError, DataError, MissingExtraError
from lorafit.files import write_atomically
from lorafit.lora import disabled
from lorafit.metrics import Scores
from lorafit.run import Run

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from lorafit.recipe import EvaluateSettings

SUITE_FILE = "eval_suite.json"
FEWSHOT_SEED = 1234  # lm-eval's own default
CPU_BATCH, GPU_BATCH = 4, 16  # requests computed together: lm-eval makes whole logits
NEVER_EQUAL = 1e-6  # a mean over rows that is further from lm-eval's figure is not how it was made


@dataclass(frozen=True)
class TaskFigure:
    """One metric of one task.

    Attributes:
        base: the base model's figure.
        tuned: the tuned model's.
        interval: of tuned - base, by the paired bootstrap over the task's rows; None where the figure is no mean of
            its rows' figures.
        higher_is_better: lm-eval's word on it; None where it has none.
    """

    base: float
    tuned: float
    interval: tuple[float, float] | None
    higher_is_better: bool | None

    @property
    def difference(self) -> float:
        """Tuned - base."""
        return self.tuned - self.base

    @property
    def kind(self) -> str:
        """What it is beyond chance: "better", "worse", "no difference", or "" where that cannot be told."""
        if self.interval is None or self.higher_is_better is None:
            return ""
        low, high = self.interval
        if low <= 0 <= high:
            return "no difference"
        return "better" if (low > 0) == self.higher_is_better else "worse"

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "base": self.base,
            "tuned": self.tuned,
            "difference": self.difference,
            "interval": None if self.interval is None else list(self.interval),
            "higher_is_better": self.higher_is_better,
        }


@dataclass(frozen=True)
class TaskResult:
    """Base against tuned on one task.

    Attributes:
        rows: how many of its rows were measured; None for a group of tasks.
        metrics: by lm-eval's name; a filter of the answers other than none stands behind it.
    """

    rows: int | None
    metrics: dict[str, TaskFigure]


@dataclass(frozen=True)
class Suite:
    """Tasks that lm-eval knows and whose rows are there.

    Attributes:
        names: of tasks, or of groups of them.
        manager: lm-eval's register of tasks.
        limit: rows of each task that are measured, its first ones; None is all.
    """

    names: list[str]
    manager: TaskManager
    limit: int | None = None

    @classmethod
    def find(cls, names: Sequence[str], path: Path | None = None, limit: int | None = None) -> Suite:
        """Look the tasks up and read their rows, before any model is loaded.

        Args:
            names: of tasks or groups.
            path: a folder with tasks of one's own, as lm-eval's YAML files.
            limit: rows of each task.

        Raises:
            MissingExtraError: lm-eval, or a package that a task needs, is not installed.
            ConfigError: an unknown task, or no folder.
            DataError: a task's rows cannot be read, such as from the hub where that cannot be reached.
        """
        try:
            from lm_eval.tasks import TaskManager
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"--suite needs {error.name}: pip install 'lorafit[lm-eval]'") from error
        if path is not None and not path.is_dir():
            raise ConfigError(f"--suite-path {path} is no folder; give one with lm-eval's YAML files")
        with _quiet():
            suite = cls(list(names), _manager(TaskManager, names, path), limit)
            suite.check_names()
            suite.load()
        return suite

    def check_names(self) -> None:
        """Raise one ConfigError for all names that lm-eval does not know."""
        unknown = []
        for name in self.names:
            if name not in self.manager.task_index:
                close = difflib.get_close_matches(name, self.manager.all_tasks, 3)
                unknown.append(f"{name!r}" + (f" (did you mean {', '.join(close)}?)" if close else ""))
        if unknown:
            raise ConfigError(
                f"--suite: lm-eval has no task {'; no task '.join(unknown)}. `lm-eval ls tasks` lists them; your own "
                "come with --suite-path DIR"
            )

    def load(self) -> Any:
        """lm-eval's tasks, freshly made: they keep what they asked and drew."""
        found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in self.names:
            try:
                loaded = self.manager.load([name])
            except ImportError as error:
                raise MissingExtraError(f"--suite {name} needs a package of its own: {error}") from error
            except ConnectionError as error:
                raise DataError(
                    f"--suite {name}: its rows lie on the hub, which cannot be reached ({error}). Run it once where it "
                    "can be: the rows then stay in the cache (HF_HOME). Or give a task of your own with rows in a "
                    "file: --suite-path DIR"
                ) from error
            except (OSError, ValueError) as error:
                raise DataError(f"--suite {name}: its rows cannot be read: {error}") from error
            for part, known in found.items():
                known.update(loaded.get(part, {}))
        for task in found["tasks"].values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        return found


def run_suite(
    suite: Suite,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    settings: EvaluateSettings,
    seed: int = 42,
) -> dict[str, TaskResult]:
    """Hand base and tuned model to lm-eval, without a chat template, as public figures are made.

    Args:
        suite: the tasks.
        model: with the adapter active; it is the same afterwards.
        tokenizer: the model's.
        settings: resamples behind each interval.
        seed: of the resampling.

    Raises:
        ConfigError: lm-eval refuses a task, such as one that runs code which the model writes.
    """
    from lm_eval.models.huggingface import HFLM

    batch = CPU_BATCH if model.device.type == "cpu" else GPU_BATCH
    with _quiet():
        made: Any = HFLM  # its decorator hides what it takes
        subject = made(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        with disabled(model):
            base = _results(suite, subject)
        tuned = _results(suite, subject)
    return {
        task: TaskResult(
            rows=len({sample["doc_id"] for sample in base["samples"][task]}) if task in base["samples"] else None,
            metrics=_figures(task, base, tuned, settings, seed),
        )
        for task in base["results"]
    }


def suite_to_dict(results: Mapping[str, TaskResult], limit: int | None) -> dict[str, Any]:
    """What `eval_suite.json` holds of these tasks."""
    return {
        task: {
            "rows": result.rows,
            "limit": limit,
            "lm_eval": version("lm_eval"),
            "metrics": {name: figure.to_dict() for name, figure in result.metrics.items()},
        }
        for task, result in results.items()
    }


def write_suite(run: Run, results: Mapping[str, TaskResult], limit: int | None) -> None:
    """Add to a run's `eval_suite.json`: tasks that were measured before stay."""
    text = json.dumps({**run.suite, **suite_to_dict(results, limit)}, indent=2, allow_nan=False)
    write_atomically(run.directory / SUITE_FILE, text + "\n")


def _manager(made: type[TaskManager], names: Sequence[str], path: Path | None) -> TaskManager:
    """The user's own tasks alone where no other is asked for: reading lm-eval's thousands takes seconds."""
    if path is not None:
        own = made(include_path=str(path), include_defaults=False)
        if set(names) <= set(own.all_subtasks):
            return own
    return made(include_path=None if path is None else str(path))


def forget_suite(directory: Path) -> None:
    """Remove a run's `eval_suite.json`: the adapter that it is about is no more."""
    (directory / SUITE_FILE).unlink(missing_ok=True)


def _results(suite: Suite, subject: Any) -> Any:
    from lm_eval.evaluator import evaluate

    try:
        return evaluate(subject, suite.load(), limit=suite.limit, bootstrap_iters=0, log_samples=True)
    except ValueError as error:
        raise ConfigError(f"--suite {','.join(suite.names)}: lm-eval refuses: {error}") from error


def _figures(task: str, base: Any, tuned: Any, settings: EvaluateSettings, seed: int) -> dict[str, TaskFigure]:
    """Every figure of a task; its results have names such as `acc,none`."""
    found = {}
    for key, value in base["results"][task].items():
        metric, comma, answers = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
            continue
        before, after = float(value), float(tuned["results"][task][key])
        rows = [_of_rows(side["samples"].get(task, []), metric, answers) for side in (base, tuned)]
        found[metric if answers == "none" else f"{metric} ({answers})"] = TaskFigure(
            before,
            after,
            _interval(rows, (before, after), settings, seed),
            base["higher_is_better"].get(task, {}).get(metric),
        )
    return found


def _of_rows(samples: Sequence[Mapping[str, Any]], metric: str, answers: str) -> dict[Any, float] | None:
    """The metric of each row by its number; None where a row has no number for it."""
    values = {sample["doc_id"]: sample.get(metric) for sample in samples if sample["filter"] == answers}
    if not values or not all(isinstance(value, bool | int | float | np.number) for value in values.values()):
        return None
    return {row: float(value) for row, value in values.items()}  # type: ignore[arg-type]


def _interval(
    rows: Sequence[dict[Any, float] | None], figures: tuple[float, float], settings: EvaluateSettings, seed: int
) -> tuple[float, float] | None:
    """By the paired bootstrap, as of every other metric, where the figure is the mean over rows."""
    base, tuned = rows
    if base is None or tuned is None or base.keys() != tuned.keys():
        return None
    before, after = (np.array([side[row] for row in base]) for side in (base, tuned))
    scores = Scores.of_sums(before, after)
    found = scores.measured(samples=settings.bootstrap_samples, seed=seed)
    if max(abs(found.base - figures[0]), abs(found.tuned - figures[1])) > NEVER_EQUAL:
        return None
    return found.interval


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's own log down to errors."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
