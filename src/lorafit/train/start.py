"""The folder of a new run, and what is to be found of an earlier start of the same one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import LorafitError
from lorafit.metrics.answers.own import is_own
from lorafit.models import ResolvedModel
from lorafit.recipe import Recipe
from lorafit.run import Run, free_directory
from lorafit.train.checkpoint import checkpoints_in, step_of
from lorafit.train.plan import Plan

_NOT_COMPARED = {"output_dir", "data.cache", "train.memory", "train.save_retry_minutes"}  # the result is the same


def start(recipe: Recipe, resolved: ResolvedModel, rows: dict[str, Any], plan: Plan | None) -> tuple[Run, Recipe]:
    """A new run directory, and the recipe with every path resolved, so that the run can be taken up from anywhere.

    Raises:
        RunError: Something is in the directory already.
    """
    local = resolved.kind in ("directory", "gguf")
    reference = str(Path(resolved.reference).resolve()) if local else resolved.reference
    directory = Path(recipe.output_dir) if recipe.output_dir else free_directory(_usual_directory(recipe))
    recipe = _with_absolute_paths(recipe, reference).model_copy(update={"output_dir": str(directory.resolve())})
    base = {"reference": reference, "revision": resolved.revision, "kind": resolved.kind}
    record = {"model": base, "data": rows, "seed": recipe.train.seed, "plan": None if plan is None else plan.to_dict()}
    return Run.create(directory, recipe, **record), recipe


def _usual_directory(recipe: Recipe) -> Path:
    model_name = Path(recipe.model.name).name.removesuffix(".gguf").replace(":", "-")  # "Qwen3-0.6B" has no suffix
    return Path("runs") / "-".join((model_name, Path(recipe.data.train_files[0]).stem))


def _with_absolute_paths(recipe: Recipe, reference: str) -> Recipe:
    lists = {"train_files": recipe.data.train_files, "validation_files": recipe.data.validation_files}
    data = recipe.data.model_copy(update={key: [_absolute(file) for file in files] for key, files in lists.items()})
    model = recipe.model.model_copy(update={"name": reference})
    evaluate = {
        "metrics": [_absolute_metric(name) for name in recipe.evaluate.metrics],
        "also": [_absolute(file) for file in recipe.evaluate.also],
    }
    sections = {"data": data, "model": model, "evaluate": recipe.evaluate.model_copy(update=evaluate)}
    return recipe.model_copy(update=sections)


def _absolute(file: str) -> str:
    return str(Path(file).resolve()) if Path(file).exists() else file


def _absolute_metric(name: str) -> str:
    file, _, function = name.rpartition(":")
    return f"{Path(file).expanduser().resolve()}:{function}" if is_own(name) else name


@dataclass(frozen=True)
class Unfinished:
    """A run that was started and has not ended.

    Attributes:
        run: its folder.
        step: of its newest checkpoint; 0 without one.
        different: settings that a recipe asks for and it has otherwise, as `key there (asked: value)`.
    """

    run: Run
    step: int
    different: tuple[str, ...]


def find_unfinished(recipe: Recipe) -> Unfinished | None:
    """The run that starting `recipe` once more would repeat.

    With `output_dir` it is the run in that folder, whatever its settings; without, the newest under the usual name that
    has the same. None where there is none, or it is finished, or a process trains it now.
    """
    if recipe.output_dir is not None:
        return _unfinished_in(Path(recipe.output_dir), recipe)
    usual = _usual_directory(recipe)
    found = (_unfinished_in(folder, recipe) for folder in reversed(list(_numbered(usual))))
    return next((one for one in found if one is not None and not one.different), None)


def _numbered(usual: Path) -> Iterator[Path]:
    """`usual`, `usual-2`, ... as far as they go; see `free_directory`."""
    candidate, number = usual, 2
    while candidate.exists():
        yield candidate
        candidate, number = usual.with_name(f"{usual.name}-{number}"), number + 1


def _unfinished_in(folder: Path, recipe: Recipe) -> Unfinished | None:
    try:
        run = Run.open(folder)
        theirs = run.recipe
    except (LorafitError, OSError):  # no run, or none that this version reads: nothing to go on with
        return None
    if run.record["state"] == "finished" or run.is_held:
        return None
    name = recipe.model.name
    asked = _with_absolute_paths(recipe, _absolute(name) if Path(name).exists() else name)
    checkpoints = checkpoints_in(run.checkpoints)
    return Unfinished(run, step_of(checkpoints[-1]) if checkpoints else 0, tuple(_differences(theirs, asked)))


def _differences(theirs: Recipe, asked: Recipe) -> Iterator[str]:
    """Settings that differ; an auto that was asked for fits whatever was settled."""
    there, here = (_flat(recipe.model_dump()) for recipe in (theirs, asked))
    for key, value in here.items():
        if key not in _NOT_COMPARED and value != "auto" and there.get(key) != value:
            yield f"{key} {there.get(key)} (asked: {value})"


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """One level of sections as dotted keys."""
    return {
        f"{name}.{key}" if isinstance(section, dict) else name: value
        for name, section in values.items()
        for key, value in (section.items() if isinstance(section, dict) else [("", section)])
    }
