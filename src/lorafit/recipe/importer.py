"""Sorts the keys of another trainer's file, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorafit.errors import ConfigError
from lorafit.recipe.aliases import ALIASES, KEEP_DEFAULT, NO_COUNTERPART, SAME_HERE, Alias
from lorafit.recipe.explain import SECTIONS, Given, default, explain, only_path, same, show
from lorafit.recipe.imported import Imported, Key
from lorafit.recipe.peers import AXOLOTL, LLAMA_FACTORY, TRL, Peer, is_secret
from lorafit.recipe.settings import Recipe

PLACEHOLDERS = {"model.name": "(none)", "data.train_files": ["(none)"]}
DATASET_KEYS = ("path", "type", "ds_type")


@dataclass
class Importer:
    """Takes one key after the other."""

    file: Path
    document: dict[str, Any]
    peer: Peer
    result: Imported = field(init=False)

    def __post_init__(self) -> None:
        self.result = Imported(self.peer.name)
        self.special: dict[str, Callable[[Given], None]] = {
            "trust_remote_code": self.remote_code,
            "stage": self.stage,
            "dataset": self.dataset_names,
            "eval_dataset": self.dataset_names,
            "datasets": self.dataset_entries,
            "test_datasets": self.dataset_entries,
            "val_size": self.held_out,
            "val_set_size": self.held_out,
            "evals_per_epoch": self.per_epoch,
            "saves_per_epoch": self.per_epoch,
            "eval_strategy": self.strategy,
            "save_strategy": self.strategy,
            "optim": self.optimizer,
            "optimizer": self.optimizer,
            "lr_scheduler": self.schedule,
            "lr_scheduler_type": self.schedule,
            "report_to": self.trackers,
            "adapter": self.adapter,
            "gradient_checkpointing": self.plain,
        }

    def take(self, entry: Given) -> None:
        """Sort one key into its list."""
        if is_secret(entry.name):
            self.missing(Given("(secret)", entry.name, entry.place), "secrets stay in the environment (HF_TOKEN, ...)")
        elif entry.value is None or entry.value == "":
            self.result.same.append(Key(entry.place, entry.name, entry.value, why="asks for nothing"))
        else:
            self.special.get(entry.name, self.plain)(entry)

    def plain(self, entry: Given) -> None:
        """A key whose meaning the tables of names hold."""
        alias = ALIASES.get(entry.name)
        path = only_path(entry.name)
        if alias is None and path is not None:
            alias = Alias(path)
        if alias is not None:
            try:
                value = alias.convert(_number(entry.value))
            except ValueError as error:
                self.missing(entry, str(error))
                return
            if value is KEEP_DEFAULT:
                self.result.same.append(Key(entry.place, entry.name, entry.value, why=f"leaves {alias.path} as it is"))
            else:
                self.set(entry, alias.path, value)
        elif any(same(value, entry.value) for value in SAME_HERE.get(entry.name, ())):
            self.result.same.append(Key(entry.place, entry.name, entry.value, why="is what lorafit does in any case"))
        elif entry.name in SAME_HERE and entry.name not in NO_COUNTERPART:
            values = " or ".join(map(show, SAME_HERE[entry.name]))
            self.missing(entry, f"lorafit only does {entry.name} = {values}")
        else:
            self.missing(entry, NO_COUNTERPART.get(entry.name, "lorafit has no such setting"))

    def set(self, entry: Given, path: str, value: Any, why: str = "") -> None:
        """Note our value of a setting; with a reason it is a guess. The first key for a setting wins, loudly."""
        if path in self.result.values and not same(self.result.values[path], value):
            self.missing(entry, f"{path} is {show(self.result.values[path])} already, by another key")
            return
        self.result.values[path] = value
        key = Key(entry.place, entry.name, entry.value, path, value, why)
        (self.result.guessed if why else self.result.translated).append(key)

    def missing(self, entry: Given, why: str) -> None:
        """Note a key that means nothing here."""
        self.result.no_counterpart.append(Key(entry.place, entry.name, entry.value, why=why))

    def remote_code(self, entry: Given) -> None:
        """Running someone's program is decided by hand."""
        if entry.value is False:
            self.plain(entry)
        else:
            self.missing(entry, "it runs code of the model's author: write model.trust_remote_code: true by hand")

    def stage(self, entry: Given) -> None:
        """LLaMA-Factory's pretraining is plain text, trained whole."""
        if entry.value == "pt":
            self.set(entry, "data.train_on", "all", "pretraining: every token of the rows is trained")
        else:
            self.plain(entry)

    def adapter(self, entry: Given) -> None:
        """Axolotl's qlora says what load_in_4bit says."""
        if entry.value == "qlora" and not self.document.get("load_in_4bit") and not self.document.get("load_in_8bit"):
            self.set(entry, "model.quantize", "nf4", "qlora without load_in_4bit")
        else:
            self.plain(entry)

    def dataset_names(self, entry: Given) -> None:
        """LLaMA-Factory's names are entries of dataset_info.json; where that is at hand, the files are known."""
        path = "data.train_files" if entry.name == "dataset" else "data.validation_files"
        names = entry.value.split(",") if isinstance(entry.value, str) else entry.value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.missing(entry, "it is no list of names")
            return
        names = [name.strip() for name in names]
        folder = Path(str(self.document.get("dataset_dir") or "data"))
        known = _dataset_info(folder, self.file.parent)
        if all(Path(name).suffix for name in names):
            self.set(entry, path, names)
        elif all(name in known for name in names):
            self.set(entry, path, [known[name] for name in names])
        else:
            files = [known.get(name) or (name if Path(name).suffix else str(folder / f"{name}.json")) for name in names]
            self.set(entry, path, files, f"names of dataset_info.json, which is not at hand: taken for {files}")

    def dataset_entries(self, entry: Given) -> None:
        """Axolotl's list of data sets; formats are recognized from the rows."""
        path = "data.train_files" if entry.name == "datasets" else "data.validation_files"
        entries = entry.value if isinstance(entry.value, list) else [entry.value]
        named = [one if isinstance(one, dict) else {"path": one} for one in entries]
        if not all(isinstance(one.get("path"), str) for one in named):
            self.missing(entry, "an entry has no path")
            return
        files = [one["path"] for one in named]
        if any(isinstance(one.get("data_files"), list | str) for one in named):
            lists = [one.get("data_files") or one["path"] for one in named]
            files = [name for files in lists for name in (files if isinstance(files, list) else [files])]
        types = sorted({str(one["type"]) for one in named if one.get("type") is not None})
        why = f"types {', '.join(types)}: formats are recognized from the rows" if types else ""
        self.set(entry, path, files, why)
        for number, one in enumerate(named):
            for key, value in one.items():
                if key not in (*DATASET_KEYS, "data_files") and value is not None:
                    part = Given(value, f"{entry.name}[{number}].{key}", entry.place)
                    self.missing(part, "rows are read as they are; the whole train split of a hub data set is taken")

    def held_out(self, entry: Given) -> None:
        """A count, or nothing held out, is not possible here."""
        value = _number(entry.value)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 0.5:
            self.set(entry, "data.validation_share", value)
            return
        what = "nothing held out" if value == 0 else "a count of rows, whose share is not known"
        share = default("data.validation_share")
        self.set(entry, "data.validation_share", share, f"{what}: lorafit measures the gain on a share of the rows")

    def per_epoch(self, entry: Given) -> None:
        """Evaluations or checkpoints an epoch, as the share of the run between two."""
        path = "train.eval_steps" if entry.name.startswith("eval") else "train.save_steps"
        times, epochs = _number(entry.value), self.epochs
        if self.document.get("max_steps", -1) not in (None, -1) or not isinstance(times, int | float) or times <= 0:
            self.missing(
                entry, "with max_steps, the length of an epoch is not known" if times else "never is not possible"
            )
        elif (share := 1 / (times * epochs)) < 1:
            self.set(entry, path, share, f"{show(entry.value)} an epoch, of {epochs:g} epochs: a share of the run")
        else:
            self.missing(entry, f"the last step is always one: {path} stays {show(default(path))}")

    def strategy(self, entry: Given) -> None:
        """`epoch` is once an epoch; `steps` is what lorafit does."""
        if entry.value == "epoch":
            self.per_epoch(Given(1, entry.name, entry.place))
        else:
            self.plain(entry)

    @property
    def epochs(self) -> float:
        """Passes over the rows, given or assumed."""
        names = ("num_train_epochs", "num_epochs")
        given = next((self.document[name] for name in names if self.document.get(name)), None)
        value = _number(given)
        assumed = self.peer.defaults.get("train.num_train_epochs", default("train.num_train_epochs"))
        return float(value) if isinstance(value, int | float) else assumed

    def optimizer(self, entry: Given) -> None:
        """All kinds of AdamW give the same result but for the bits their state is held in."""
        ours = {"adamw_hf": "adamw_torch", "adamw": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"}
        if isinstance(entry.value, str) and entry.value in ours:
            self.set(entry, "train.optim", ours[entry.value], f"{entry.value} is AdamW")
        else:
            self.plain(entry)

    def schedule(self, entry: Given) -> None:
        """`constant` has no warm-up."""
        if entry.value == "constant":
            self.set(entry, "train.lr_scheduler_type", "constant_with_warmup", "constant: with a warm-up of 0 steps")
            self.set(Given(0, entry.name, entry.place), "train.warmup_steps", 0, "constant has no warm-up")
        else:
            self.plain(entry)

    def trackers(self, entry: Given) -> None:
        """`none` is an empty list."""
        if entry.value in ("none", ["none"], []):
            self.set(entry, "train.report_to", [])
        else:
            self.plain(entry)

    def assume(self) -> None:
        """What the trainer does where the file says nothing, and lorafit would do something else."""
        values = self.result.values
        for path, value in self.peer.defaults.items():
            if path not in values:
                self.set(Given(None, path, str(self.file)), path, value, f"not given: the default of {self.peer.name}")
        if self.peer is LLAMA_FACTORY and "lora.lora_alpha" not in values:
            alpha = 2 * values["lora.r"] if isinstance(values["lora.r"], int) else default("lora.lora_alpha")
            why = "not given: LLaMA-Factory doubles the rank"
            self.set(Given(None, "lora_alpha", str(self.file)), "lora.lora_alpha", alpha, why)
        if self.peer is TRL and not self.document.get("use_peft"):
            why = "without use_peft TRL trains all weights; lorafit trains an adapter, with a far higher learning rate"
            self.result.guessed.append(Key(str(self.file), "use_peft", None, why=why))
        if self.peer is AXOLOTL and not self.document.get("adapter"):
            why = "without adapter axolotl trains all weights; lorafit trains an adapter"
            self.result.guessed.append(Key(str(self.file), "adapter", None, why=why))

    def check(self) -> None:
        """Take out what no recipe may hold, naming the rule, until the rest is one."""
        values = self.result.values
        while not isinstance(made := _validated(values), Recipe):
            parts = {".".join(str(part) for part in item["loc"][:2]) for item in made.errors()}
            said = " ".join(item["msg"] for item in made.errors())  # rules between settings name them
            wrong = {path for path in values if path in parts or path in said}
            inside = {path for path in values if path.partition(".")[0] in parts}
            wrong = wrong or {path for path in inside if path.partition(".")[2] in said} or {*values}
            rules = explain(made, {path: Given(values[path], path, "") for path in values}, set())
            for kept in (self.result.translated, self.result.guessed):
                for key in [key for key in kept if key.setting in wrong]:
                    rule = next((line for line in rules if str(key.setting) in line), rules[0])
                    self.missing(Given(key.value, key.key, key.place), rule.removeprefix(": "))
                    kept.remove(key)
            for path in wrong:
                del values[path]
        for path in values:  # as recipes write them: a list of one for a name, ...
            section, _, name = path.rpartition(".")
            values[path] = made.model_dump()[section][name] if section else made.model_dump()[name]
        for path, flag in (("model.name", "--model"), ("data.train_files", "--data")):
            if path not in values:
                key = Key(str(self.file), path, None, path, None, f"the file names none: give {flag}")
                self.result.guessed.append(key)


def _validated(values: dict[str, Any]) -> Recipe | ValidationError:
    """The recipe, or why settings are none; that model or data are missing does not count."""
    nested: dict[str, Any] = {name: {} for name in SECTIONS}
    for path, value in {**PLACEHOLDERS, **values}.items():
        section, _, name = path.rpartition(".")
        (nested[section] if section else nested)[name] = value
    try:
        return Recipe.model_validate(nested)
    except ValidationError as error:
        return error


def _number(value: Any) -> Any:
    """Quoted numbers, and those that YAML 1.1 leaves strings (`1e-4`), are numbers to these trainers."""
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        try:
            return float(value)
        except ValueError:
            return value


def _dataset_info(folder: Path, beside: Path) -> dict[str, str]:
    """Files, or hub ids, of LLaMA-Factory's data sets, from its dataset_info.json where there is one.

    Raises:
        ConfigError: It cannot be read.
    """
    for place in (folder, beside / folder):
        info = place / "dataset_info.json"
        if info.is_file():
            try:
                entries = json.loads(info.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise ConfigError(f"{info}, which names the data sets, cannot be read: {error}") from None
            if not isinstance(entries, dict):
                raise ConfigError(f"{info} names no data sets: it holds a {type(entries).__name__}")
            found = {}
            for name, entry in entries.items():
                file, hub = (
                    (entry.get(key) for key in ("file_name", "hf_hub_url")) if isinstance(entry, dict) else (0, 0)
                )
                if isinstance(file, str) or isinstance(hub, str):
                    found[name] = str(place / file) if isinstance(file, str) else hub
            return found
    return {}
