"""The models by name: one base, and the adapters of runs over it, each prompted as it was trained."""

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import AdapterError, ConfigError, ModelError
from lorafit.run import Run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafit.data import Template
    from lorafit.models import ResolvedModel


class NameTaken(ConfigError):
    """A model of that name is there already."""


class NameUnknown(ConfigError):
    """No model has that name."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
NAME_RULE = "a name has 1 to 128 letters, digits, '.', '_', ':', '/' or '-' and begins with a letter or a digit"


@dataclasses.dataclass(frozen=True)
class Served:
    """One model that answers.

    Attributes:
        name: What requests call it.
        adapter: Its name inside the model; None is the base model.
        template: Puts its conversations.
        source: The run or folder it came from; for the base, the reference.
        created: Seconds since 1970.
    """

    name: str
    adapter: str | None
    template: "Template"
    source: str
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


@dataclasses.dataclass(frozen=True)
class Base:
    """What runs must have in common.

    Attributes:
        resolved: Where it lies.
        quantize: How its linear layers are held.
        trust_remote_code: Whether its own code runs.
        dtype: Of its weights.
        device: Where it runs.
    """

    resolved: "ResolvedModel"
    quantize: str
    trust_remote_code: bool
    dtype: "torch.dtype"
    device: "torch.device"

    @property
    def words(self) -> str:
        """For a message."""
        revision = f" at {self.resolved.revision}" if self.resolved.revision else ""
        return f"{self.resolved.reference}{revision}{'' if self.quantize == 'none' else f' in {self.quantize}'}"

    def is_same(self, other: "Base") -> bool:
        """Whether both mean the same weights."""
        return self._weights == other._weights

    @property
    def _weights(self) -> tuple[str, str | None, str]:
        local = self.resolved.kind != "hub"
        path = str(Path(self.resolved.path).resolve()) if local else self.resolved.path
        return path, self.resolved.revision, self.quantize


def base_of(run: Run) -> Base:
    """The base model of a run that generates text and has an adapter.

    Raises:
        RunError: It is a classification, or has no adapter yet.
        ModelError: The base is there no more.
    """
    from lorafit.models import dtype_on, pick_device

    run.check_has_adapter("sft")
    loading = run.recipe.model.loading
    device = pick_device(loading["device"])
    return Base(
        run.find_base(), loading["quantize"], loading["trust_remote_code"], dtype_on(loading["dtype"], device), device
    )


def named_runs(words: Sequence[str]) -> dict[str, Run]:
    """Runs by the name they are served under: `NAME=RUN`, or the directory's own name.

    Raises:
        ConfigError: A name is impossible, or two are the same.
        RunError: One is no run.
    """
    runs: dict[str, Run] = {}
    for word in words:
        given, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            given, path = "", word
        run = Run.open(Path(path).expanduser())
        name = given or run.directory.resolve().name
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a model ({NAME_RULE}): give one, as in my-model={path}")
        if name in runs:
            raise ConfigError(
                f"{runs[name].directory} and {run.directory} would both be called {name!r}: give names, as in "
                f"{name}-2={path}"
            )
        runs[name] = run
    return runs


def common_base(runs: Mapping[str, Run]) -> Base:
    """The base model that all runs share; in the widest of their dtypes.

    Raises:
        ModelError: Two were made from other base models; names both.
    """
    import torch

    found = [(run, base_of(run)) for run in runs.values()]
    first_run, base = found[0]
    for run, other in found[1:]:
        if not base.is_same(other):
            raise ModelError(
                f"{first_run.directory} was trained on {base.words} and {run.directory} on {other.words}: runs served "
                "together share one base model; serve these in two processes"
            )
        base = dataclasses.replace(base, dtype=torch.promote_types(base.dtype, other.dtype))
    return base


class Models:
    """The base model with its adapters, in memory.

    Adapters are added and removed in the thread that owns the model; names may be looked up anywhere.

    Args:
        runs: By the name they are served under; at least one.

    Raises:
        LorafitError: A run or its base cannot be loaded, or they do not fit together.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    def __init__(self, runs: Mapping[str, Run]) -> None:
        from lorafit.models import load_model, load_tokenizer

        self.base = base = common_base(runs)
        self._numbers = 0
        name = base.resolved.reference
        self.base_name = Path(name).name if base.resolved.kind in ("directory", "gguf") else name
        if self.base_name in runs:
            raise ConfigError(f"{self.base_name!r} is the base model's name: serve the run as another, NAME=RUN")
        self.tokenizer = load_tokenizer(base.resolved, trust_remote_code=base.trust_remote_code)
        self.model = load_model(
            base.resolved,
            dtype=base.dtype,
            device=base.device,
            quantize=base.quantize,  # pyright: ignore[reportArgumentType]  # a recipe's word
            trust_remote_code=base.trust_remote_code,
        )
        first = next(iter(runs.values()))
        # asked as its first adapter is, so that their answers can be compared
        template = self._template(first.adapter)
        self._served = {self.base_name: Served(self.base_name, None, template, name)}
        for run_name, run in runs.items():
            self.add(run_name, run.directory)

    def list(self) -> list[Served]:
        """All, the base model first."""
        return list(self._served.values())

    def find(self, name: str) -> Served | None:
        """The model of that name."""
        return self._served.get(name)

    def check_new(self, name: str) -> None:
        """Refuse a name that is taken or impossible.

        Raises:
            ConfigError: Says which.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a model: {NAME_RULE}")
        if name in self._served:
            raise NameTaken(f"there is a model {name!r} already: delete it first or take another name")

    def add(self, name: str, path: Path) -> Served:
        """Load one more adapter: a run's, or a folder's in PEFT's format.

        Raises:
            LorafitError: It is none, does not fit the base model, or cannot share a batch; nothing has changed then.
        """
        from lorafit.lora import load_adapter, set_adapter
        from lorafit.serve.proof import check_rows

        self.check_new(name)
        folder = self._adapter_folder(path)
        template = self._template(folder)
        self._numbers += 1
        adapter = f"served{self._numbers}"
        load_adapter(self.model, folder, adapter)
        set_adapter(self.model, [])
        try:
            check_rows(self.model, adapter, name)
        except BaseException:  # an interrupt, too, leaves no adapter that was not proven
            self._delete(adapter)
            raise
        served = Served(name, adapter, template, str(path))
        self._served = {**self._served, name: served}  # whoever lists them meanwhile sees the old or the new ones
        return served

    def withdraw(self, name: str) -> Served:
        """Take a name off the list; its adapter stays until `delete`.

        Raises:
            ConfigError: It is unknown, or the base model's.
        """
        served = self._served.get(name)
        if served is None:
            raise NameUnknown(f"{name!r} is no model: there are {', '.join(self._served)}")
        if served.adapter is None:
            raise ConfigError(f"{name!r} is the base model, no adapter")
        self._served = {key: value for key, value in self._served.items() if key != name}
        return served

    def delete(self, served: Served) -> None:
        """Free an adapter that was withdrawn."""
        assert served.adapter is not None
        self._delete(served.adapter)

    def _delete(self, adapter: str) -> None:
        from lorafit.lora import delete_adapter

        delete_adapter(self.model, adapter)

    def _adapter_folder(self, path: Path) -> Path:
        path = path.expanduser()
        if not path.is_dir():
            raise AdapterError(f"{path} is no folder on the server's machine: give a run, or a folder with an adapter")
        if not (path / "run.json").exists():
            return path
        run = Run.open(path)
        other = base_of(run)
        if not self.base.is_same(other):
            raise ModelError(
                f"{path} was trained on {other.words}, and this server has {self.base.words}: an adapter fits its own "
                "base model only"
            )
        return run.adapter

    def _template(self, folder: Path) -> "Template":
        from lorafit.data import Template

        file = folder / "chat_template.jinja"
        return Template(self.tokenizer, file.read_text(encoding="utf-8") if file.exists() else None)


def described(served: Served, base_name: str) -> dict[str, Any]:
    """As `/v1/models` shows it; `root` and `parent` as other servers of adapters do."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "lorafit",
        "root": base_name,
        "parent": None if served.adapter is None else base_name,
    }
