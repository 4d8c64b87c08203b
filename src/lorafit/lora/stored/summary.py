"""What an adapter is, and which adapters a folder holds."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lorafit.errors import AdapterFileError, LorafitError
from lorafit.lora.config import LoraConfig
from lorafit.lora.peft_format import CONFIG_FILE, WEIGHTS_FILE, read_config
from lorafit.lora.stored import StoredAdapter, in_order
from lorafit.lora.stored.keys import plain_key, split_key
from lorafit.lora.targets import pattern_value

LEVELS = 4  # of folders that are searched


@dataclass(frozen=True)
class Summary:
    """An adapter by its settings and the header of its file.

    Attributes:
        folder: where it lies.
        base: the base model its settings name.
        r: its rank, or the least and the largest.
        lora_alpha: likewise.
        variant: "LoRA" or "rsLoRA".
        targets: the last names of the adapted modules and how many there are of each.
        parameters: how many numbers the file holds.
        bytes: the size of the file.
        dtypes: of its tensors, as safetensors spells them.
        whole: modules and biases trained whole, by key.
        repairs: what is odd about the file's keys, in words.
    """

    folder: Path
    base: str | None
    r: tuple[int, int]
    lora_alpha: tuple[float, float]
    variant: str
    targets: dict[str, int]
    parameters: int
    bytes: int
    dtypes: list[str]
    whole: list[str]
    repairs: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "folder": str(self.folder), "r": list(self.r), "lora_alpha": list(self.lora_alpha)}


def summary(folder: Path) -> Summary:
    """Read settings and header; no tensor is read.

    Raises:
        AdapterFileError: Files that are missing or damaged, or settings that are not supported.
    """
    config = read_config(folder)
    shapes, dtypes = _header(folder / WEIGHTS_FILE)
    names: dict[str, None] = {}
    whole, odd = [], Counter[str]()
    for key in shapes:
        plain, oddities = plain_key(key)
        odd.update(oddities)
        module, part = split_key(plain)
        if part is None:
            whole.append(plain)
        else:
            names[module] = None
    ordered = sorted(names, key=in_order)
    ranks = [pattern_value(config.rank_pattern, name, config.r) for name in ordered] or [config.r]
    alphas = [pattern_value(config.alpha_pattern, name, config.lora_alpha) for name in ordered] or [config.lora_alpha]
    return Summary(
        folder=folder,
        base=config.base_model_name_or_path,
        r=(min(ranks), max(ranks)),
        lora_alpha=(min(alphas), max(alphas)),
        variant=variant_name(config),
        targets=dict(Counter(name.rpartition(".")[2] for name in ordered)),
        parameters=sum(shapes.values()),
        bytes=(folder / WEIGHTS_FILE).stat().st_size,
        dtypes=sorted(dtypes),
        whole=sorted(whole, key=in_order),
        repairs=[f"{what} ({count} keys)" for what, count in odd.items()],
    )


def variant_name(config: LoraConfig) -> str:
    """The usual spelling of the variant."""
    return "rsLoRA" if config.use_rslora else "LoRA"


def _header(path: Path) -> tuple[dict[str, int], set[str]]:
    """How many numbers each tensor of a file has, and their dtypes."""
    sizes, dtypes = {}, set()
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_slice(key)
                size = 1
                for length in tensor.get_shape():
                    size *= length
                sizes[key] = size
                dtypes.add(tensor.get_dtype())
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{path} is damaged or no safetensors file: {error}") from error
    return sizes, dtypes


@dataclass(frozen=True)
class ModuleFigures:
    """One adapted module.

    Attributes:
        module: its path.
        r: the rank.
        lora_alpha: of the settings.
        scaling: the factor on `B A`.
        norm: the Frobenius norm of `scaling * B A`.
        parameters: numbers in A and B.
    """

    module: str
    r: int
    lora_alpha: float
    scaling: float
    norm: float
    parameters: int


def module_figures(adapter: StoredAdapter) -> list[ModuleFigures]:
    """Of every adapted module, layers in the order of their numbers."""
    return [
        ModuleFigures(
            name,
            update.r,
            pattern_value(adapter.config.alpha_pattern, name, adapter.config.lora_alpha),
            update.scaling,
            update.norm,
            update.A.numel() + update.B.numel(),
        )
        for name, update in adapter.updates.items()
    ]


def find_adapters(folder: Path) -> tuple[list[Summary], list[tuple[Path, str]]]:
    """The adapters in a folder, itself and some levels of folders in it.

    Hidden folders are passed over, and the checkpoints of runs, whose best is the run's adapter.

    Returns:
        The adapters, by path; those that cannot be read, with the reason.
    """
    found, broken = [], []
    for path in _folders(folder, LEVELS):
        try:
            found.append(summary(path))
        except LorafitError as error:
            broken.append((path, str(error)))
    return found, broken


def _folders(folder: Path, levels: int) -> Iterator[Path]:
    """Those with an adapter's two files."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: in_order(entry.name.replace("-", ".")))
    except OSError:  # not ours to read: nothing there that could be used
        return
    names = {entry.name for entry in entries}
    if {CONFIG_FILE, WEIGHTS_FILE} <= names:
        yield folder
    for entry in entries if levels else ():
        checkpoints = entry.name == "checkpoints" and "run.json" in names
        if entry.is_dir() and not entry.name.startswith(".") and not checkpoints:
            yield from _folders(Path(entry.path), levels - 1)
