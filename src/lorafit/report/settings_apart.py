"""Settings in which runs differ, and the metric over those that are tried most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.recipe import Recipe
from lorafit.run import Run

TRIED = ("lora.r", "lora.lora_alpha", "train.learning_rate")
PATHS = ("data.train_files", "data.validation_files")


@dataclass(frozen=True)
class SettingApart:
    """One setting that is not the same in all runs.

    Attributes:
        key: its dotted name; `versions.*` are packages, `rows` the rows that were trained on.
        values: of each run, as the recipe has them.
    """

    key: str
    values: tuple[Any, ...]

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON values, by the runs' names."""
        return {"setting": self.key, "values": dict(zip(names, self.values, strict=True))}


@dataclass(frozen=True)
class Tried:
    """Ranks, alphas and learning rates that differ, and what came of them.

    Attributes:
        metric: the metric of the tuned models.
        keys: those of `TRIED` that differ.
        values: of each run, in the order of `keys`.
        tuned: the metric of each run; None where it lacks.
        others_differ: other settings that differ too, so that the metric is not theirs alone.
    """

    metric: str
    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    tuned: tuple[float | None, ...]
    others_differ: tuple[str, ...]

    @property
    def grid(self) -> tuple[list[Any], list[Any], dict[tuple[Any, Any], list[int]]] | None:
        """Rows, columns, and the numbers of the runs in each cell, where two settings cross; else None."""
        if len(self.keys) != 2:
            return None
        rows, columns = (sorted(set(values)) for values in zip(*self.values, strict=True))
        cells: dict[tuple[Any, Any], list[int]] = {}
        for number, values in enumerate(self.values):
            cells.setdefault((values[0], values[1]), []).append(number)
        crossed = len(cells) > max(len(rows), len(columns))  # r with alpha = 2 r is a line, not a grid
        return (rows, columns, cells) if crossed else None

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON values."""
        runs = [
            {"run": name, **dict(zip(self.keys, values, strict=True)), "tuned": tuned}
            for name, values, tuned in zip(names, self.values, self.tuned, strict=True)
        ]
        return {"metric": self.metric, "settings": list(self.keys), "runs": runs, "others": list(self.others_differ)}


def settings_apart(runs: Sequence[Run]) -> list[SettingApart]:
    """Settings, rows and versions of packages that are not the same in all runs, `output_dir` and folders apart."""
    settings = [_settings(run.recipe) for run in runs]
    records = [run.record for run in runs]
    found = [SettingApart(key, tuple(one[key] for one in settings)) for key in settings[0]]
    found.append(SettingApart("rows", tuple(_rows(record["data"]) for record in records)))
    packages = dict.fromkeys(name for record in records for name in record["versions"])
    found += [
        SettingApart(f"versions.{name}", tuple(record["versions"].get(name) for record in records)) for name in packages
    ]
    return [setting for setting in found if any(value != setting.values[0] for value in setting.values)]


def tried(apart: Sequence[SettingApart], metric: str, tuned: Sequence[float | None]) -> Tried | None:
    """The table of ranks, alphas and learning rates; None where all runs have the same.

    Args:
        apart: settings that differ.
        metric: the one of `tuned`.
        tuned: the metric of each run.
    """
    mine = [setting for setting in apart if setting.key in TRIED]
    if not mine:
        return None
    others = tuple(setting.key for setting in apart if setting.key not in TRIED)
    values = tuple(zip(*(setting.values for setting in mine), strict=True))
    return Tried(metric, tuple(setting.key for setting in mine), values, tuple(tuned), others)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its dotted name; of paths the last part."""
    values = recipe.model_dump(exclude={"output_dir"})
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    for key in PATHS:
        flat[key] = [Path(file).name for file in flat[key]]
    if Path(flat["model.name"]).is_absolute():
        flat["model.name"] = Path(flat["model.name"]).name
    return flat


def _rows(data: Mapping[str, Any]) -> str:
    """What identifies the rows that a run was trained on, as its model reads them."""
    return f"{data['summary']['train_rows']:,} ({data['rows_sha256'][:8]})"
