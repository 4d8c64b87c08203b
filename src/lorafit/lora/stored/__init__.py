"""Adapters as files, worked on without a model: read, merged, resized, renamed, extracted, written again."""

import copy
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorafit.errors import AdapterFileError, ConfigError
from lorafit.lora.config import LoraConfig
from lorafit.lora.factors import Factors
from lorafit.lora.peft_format import PREFIX, WEIGHTS_FILE, find_adapter, read_config, read_tensors, write_files
from lorafit.lora.stored.keys import plain_key, split_key
from lorafit.lora.targets import matches, pattern_value
from lorafit.lora.variants import variant_of

# What an adapter is used with and lies beside it: a template, class names, a tokenizer with added tokens.
BESIDE = (
    "chat_template.jinja", "labels.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as its files hold it.

    Attributes:
        config: its settings.
        updates: by the path of the adapted module, layers in the order of their numbers.
        whole: biases and the parameters of modules trained whole, by key without PEFT's prefix.
        repairs: what was odd about the file's keys and is put right here, in words.
    """

    config: LoraConfig
    updates: dict[str, Factors]
    whole: dict[str, Tensor]
    repairs: list[str] = field(default_factory=list)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their keys in PEFT's file."""
        tensors = {}
        for name, update in self.updates.items():
            for part, value in (("A", update.A), ("B", update.B)):
                suffix = f"lora_embedding_{part}" if update.embedding else f"lora_{part}.weight"
                tensors[f"{PREFIX}{name}.{suffix}"] = value
        return {**tensors, **{PREFIX + key: value for key, value in self.whole.items()}}

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(value.numel() for value in self.tensors.values())


def read_adapter(directory: str | os.PathLike, *, repair: bool = False) -> StoredAdapter:
    """Read an adapter in PEFT's format.

    Args:
        directory: A folder or a hub id.
        repair: Put right keys that other tools have left odd (wrappers, the adapter's name, no prefix), and tell what.

    Raises:
        AdapterFileError: Files that are missing or damaged, settings that are not supported, keys that need repair,
            ranks that differ from the settings: all that is wrong with the keys at once.
    """
    folder = find_adapter(directory)
    config = read_config(folder)
    tensors, repairs = _plain(read_tensors(folder / WEIGHTS_FILE), config)
    if repairs and not repair:
        raise AdapterFileError(
            f"{folder / WEIGHTS_FILE} is not as PEFT writes it: {'; '.join(repairs)}. Put it right with "
            f"`lorafit adapters rename {directory} --output-dir DIR`"
        )
    halves: dict[str, dict[str, Tensor]] = {}
    whole, problems = {}, []
    for key, value in tensors.items():
        module, part = split_key(key)
        if part is None:
            whole[key] = value
        else:
            halves.setdefault(module, {})[part] = value
    updates = {}
    for name in sorted(halves, key=in_order):
        found = _factors(name, halves[name], config)
        if isinstance(found, Factors):
            updates[name] = found
        else:
            problems.append(found)
    if problems or not updates:
        problems = problems or ["it holds no A and B"]
        raise AdapterFileError(f"{folder / WEIGHTS_FILE}: " + "\n  ".join(problems))
    return StoredAdapter(config, updates, whole, repairs)


def _plain(tensors: dict[str, Tensor], config: LoraConfig) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by their keys without PEFT's prefix, and what had to be done for that."""
    plain, counts = {}, Counter[str]()
    saves_whole = bool(config.modules_to_save) or config.bias != "none"
    for key, value in tensors.items():
        name, oddities = plain_key(key)
        counts.update(oddities)
        if split_key(name)[1] is None and oddities and not saves_whole:
            counts["a frozen weight of the base model"] += 1
        elif name in plain:
            raise AdapterFileError(f"two keys of the file are the same without what does not belong there: {name}")
        else:
            plain[name] = value
    return plain, [f"{what} ({count} keys)" for what, count in counts.items()]


def _factors(name: str, halves: dict[str, Tensor], config: LoraConfig) -> Factors | str:
    """A and B of a module, or what is wrong with them."""
    parts = set(halves)
    if parts not in ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}):
        return f"{name} has {' and '.join(sorted(parts))} only, which is no pair of A and B"
    embedding = "lora_embedding_A" in parts
    A, B = (halves[f"lora_{'embedding_' * embedding}{part}"] for part in "AB")
    r = pattern_value(config.rank_pattern, name, config.r)
    if A.dim() < 2 or B.dim() < 2 or A.shape[0] != r or not B.shape[1] or r % B.shape[1]:
        return f"{name}: A {tuple(A.shape)} and B {tuple(B.shape)} do not have the rank {r} of the settings"
    alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha)
    return Factors(A, B, variant_of(config).scaling(alpha, r), embedding)


def write_adapter(adapter: StoredAdapter, directory: Path, beside: Iterable[Path] = ()) -> None:
    """Write an adapter in PEFT's format into a new directory: all of it or nothing.

    Args:
        adapter: The adapter.
        directory: A new or empty one; parents are made.
        beside: Files to copy next to it.

    Raises:
        ConfigError: The directory holds something.
    """
    check_free(directory)
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
        made = Path(temporary) / directory.name  # with the usual rights, which the temporary folder has not
        made.mkdir()
        write_files(made, adapter.config, adapter.tensors)
        for file in beside:
            shutil.copyfile(file, made / file.name)
        if directory.exists():
            directory.rmdir()
        made.rename(directory)


def check_free(directory: Path) -> None:
    """Refuse an output directory that holds something.

    Raises:
        ConfigError: It does.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty and is not overwritten: give a new directory")


def files_beside(folders: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """What adapters are used with.

    Returns:
        The files to copy next to an adapter made of those in `folders`; names of which there are different versions.
    """
    alike, apart = [], []
    for name in BESIDE:
        files = [folder / name for folder in folders if (folder / name).is_file()]
        if files and len({file.read_bytes() for file in files}) == 1:
            alike.append(files[0])
        elif files:
            apart.append(name)
    return alike, apart


def in_order(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts layer 2 before layer 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def described(config: LoraConfig, updates: dict[str, Factors]) -> LoraConfig:
    """`config` with targets, ranks and alphas that say what `updates` are; what says so already stays as it is."""
    config = copy.deepcopy(config)
    narrowed = config.exclude_modules or config.layers_to_transform is not None
    if narrowed or config.target_modules is None or not all(matches(config.target_modules, name) for name in updates):
        config.target_modules = sorted(updates, key=in_order)
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    alpha = variant_of(config).alpha
    values = {name: (update.r, _number(alpha(update.scaling, update.r))) for name, update in updates.items()}
    if any(_values(config, name) != own for name, own in values.items()):
        config.r, config.lora_alpha = common = Counter(values.values()).most_common(1)[0][0]
        config.rank_pattern = {re.escape(name): r for name, (r, _) in values.items() if r != common[0]}
        config.alpha_pattern = {re.escape(name): a for name, (_, a) in values.items() if a != common[1]}
    return config


def _values(config: LoraConfig, name: str) -> tuple[int, float]:
    """Rank and alpha of a module."""
    r = pattern_value(config.rank_pattern, name, config.r)
    return r, _number(pattern_value(config.alpha_pattern, name, config.lora_alpha))


def _number(alpha: float) -> float:
    """Without the last digits, in which `alpha / r * r` may be off."""
    return float(f"{alpha:.12g}")


def computed(adapter: StoredAdapter) -> dict[str, Factors]:
    """The updates in the precision to compute in: float32, as PEFT loads them, or float64."""
    return {
        name: update.to(torch.float64 if update.A.dtype == torch.float64 else torch.float32)
        for name, update in adapter.updates.items()
    }
