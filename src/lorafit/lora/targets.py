"""Which modules a `LoraConfig` names: matching by PEFT's rules, but nothing that matches nothing passes in silence."""

import difflib
from collections.abc import Callable, Iterable

import torch.nn as nn

from lorafit.errors import ConfigError
from lorafit.lora.architectures import DEFAULT_TARGETS, TASK_HEADS
from lorafit.lora.config import LoraConfig
from lorafit.lora.graft import base_modules
from lorafit.lora.layers import conv1d, kind_of, linear
from lorafit.patterns import fullmatch, match
from lorafit.untrusted import short

Rule = Callable[[Iterable[str], str], bool]
MOST_LINES = 20  # of entries that match nothing; each is compared with the model's names


def find_targets(model: nn.Module, config: LoraConfig, *, strict: bool = True) -> list[str]:
    """Names of the modules to adapt, in the model's order.

    Args:
        model: The base model.
        config: The settings.
        strict: Refuse entries that match nothing; a file's own are harmless, since its tensors tell what it adapts.

    Raises:
        ConfigError: One error that lists every entry that matches nothing (with close names) or an unsupported module.
    """
    modules = dict(base_modules(model))
    saved = set(find_saved(model, config))
    inside_saved = {name for name in modules if any(name == top or name.startswith(top + ".") for top in saved)}
    idle = _idle_entries(config, modules)
    heads = TASK_HEADS.get(config.task_type or "", ())  # PEFT writes them all into modules_to_save, whichever exist
    saved_entries = [entry for entry in config.modules_to_save or [] if entry not in heads]
    idle += _unmatched(saved_entries, modules, "modules_to_save", saves)
    if _is_all_linear(config.target_modules):
        candidates = all_linear(model, config)
    else:
        targets = config.target_modules if config.target_modules is not None else _default_targets(model)
        named = _looked_up(targets)
        candidates = [name for name in modules if name and matches(named, name)]
        idle += _unmatched(targets, modules, "target_modules")
    chosen = [name for name in candidates if name not in inside_saved and not _excluded(config, name)]
    chosen = _in_layers(config, chosen)
    problems = idle if strict or not chosen else []
    problems += [
        f"target {name!r} is a {type(modules[name]).__name__}, which LoRA cannot adapt; "
        f"name the linear, convolution or embedding layers in it or use exclude_modules"
        for name in chosen
        if kind_of(modules[name]) is None
    ]
    if not chosen and not problems:
        problems.append("target_modules: every match is excluded, saved whole or outside layers_to_transform")
    if problems:
        raise ConfigError("; ".join(problems))
    return chosen


def find_saved(model: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the modules to train whole: `modules_to_save` and the head of a classification task."""
    names = [name for name, _ in base_modules(model) if name]
    entries = [*(config.modules_to_save or []), *TASK_HEADS.get(config.task_type or "", ())]
    return [name for name in names if saves(entries, name)]


def all_linear(model: nn.Module, config: LoraConfig) -> list[str]:
    """Every linear layer but the output head (and the head of a classification task)."""
    # transformers' models tell their head; any other module has none to spare.
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    task_heads = TASK_HEADS.get(config.task_type or "", ()) if head is None else ()
    return [
        name
        for name, module in base_modules(model)
        if (linear.Layer.matches(module) or conv1d.Layer.matches(module))
        and module is not head
        and name not in task_heads
    ]


def matches(targets: Iterable[str], name: str) -> bool:
    """PEFT's rule for targets: a regular expression over the whole name, or names and suffixes (a set, where many)."""
    if isinstance(targets, str):
        return fullmatch(targets, name) is not None
    parts = name.split(".")
    return any(".".join(parts[i:]) in targets for i in range(len(parts)))


def saves(entries: Iterable[str], name: str) -> bool:
    """PEFT's rule for `modules_to_save`: any end of the name, also within a word."""
    return name.endswith(tuple(entries))


def short_names(model: nn.Module, names: list[str], fits: Rule = matches) -> list[str]:
    """The last parts of `names` where these select exactly `names`, else `names` themselves."""
    short = sorted({name.rpartition(".")[2] for name in names})
    selected = [name for name, _ in base_modules(model) if name and fits(short, name)]
    return short if sorted(selected) == sorted(names) else sorted(names)


def pattern_value(patterns: dict, name: str, default):
    """The value of the first pattern that fits the end of `name` (PEFT's `rank_pattern`, `alpha_pattern`)."""
    for pattern, value in patterns.items():
        if match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _is_all_linear(targets: list[str] | str | None) -> bool:
    return isinstance(targets, str) and targets.lower() == "all-linear"


def _default_targets(model: nn.Module) -> list[str] | str:
    model_type = str(model.config.model_type) if hasattr(model, "config") else type(model).__name__  # type: ignore[union-attr]
    if model_type not in DEFAULT_TARGETS:
        raise ConfigError(
            f"target_modules=None has no default for {model_type!r}; name the modules or use 'all-linear'"
        )
    return DEFAULT_TARGETS[model_type]


def _excluded(config: LoraConfig, name: str) -> bool:
    return config.exclude_modules is not None and matches(_looked_up(config.exclude_modules), name)


def _in_layers(config: LoraConfig, names: list[str]) -> list[str]:
    if config.layers_to_transform is None:
        return names
    wanted = config.layers_to_transform
    indices = {wanted} if isinstance(wanted, int) else set(wanted)
    return [name for name in names if _layer_index(config, name) in indices]


def _layer_index(config: LoraConfig, name: str) -> int | None:
    """The number after the list of layers in `name`: `model.layers.3.mlp` -> 3."""
    patterns = config.layers_pattern or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
            return _last_number(found)
    found = None if patterns else match(r"(?:.*?\.)?[^.]*\.(\d+)\.", name)
    return _last_number(found) if found else None


def _last_number(found) -> int | None:
    """Of a match, the last group: a pattern may have groups of its own."""
    number = found[found.re.groups]
    return int(number) if number is not None else None


def _unmatched(targets: list[str] | str, modules: dict[str, nn.Module], field: str, fits: Rule = matches) -> list[str]:
    """A line for each entry that no module's name fits, up to a few."""
    if isinstance(targets, str):
        missing = [] if any(matches(targets, name) for name in modules) else [targets]
    else:
        endings = {ending for name in modules for ending in _endings(name, fits)}
        missing = [entry for entry in targets if entry not in endings]
    lines = [f"{field}: {short(entry)} matches no module; {_close(entry, modules)}" for entry in missing[:MOST_LINES]]
    return lines + ([f"{field}: {len(missing) - MOST_LINES:,} more match none"] if missing[MOST_LINES:] else [])


def _endings(name: str, fits: Rule) -> Iterable[str]:
    """What a rule's entry may be to fit `name`: its last parts, or for `modules_to_save` any end of it."""
    return (name[i:] for i in range(len(name) + 1) if fits is saves or i == 0 or name[i - 1] == ".")


def _looked_up(targets: Iterable[str]) -> Iterable[str]:
    """A list as a set, in which an entry is found at once."""
    return targets if isinstance(targets, str) else frozenset(targets)


def _close(entry: str, modules: dict[str, nn.Module]) -> str:
    adaptable = {name.rpartition(".")[2] for name, module in modules.items() if kind_of(module)} - {""}
    adaptable = {name for name in adaptable if not name.isdigit()}
    close = difflib.get_close_matches(entry[-200:].rpartition(".")[2], sorted(adaptable), 3, 0.5)
    if close:
        return "close: " + ", ".join(close)
    return "this model has " + ", ".join(sorted(adaptable)[:20])


def _idle_entries(config: LoraConfig, modules: dict[str, nn.Module]) -> list[str]:
    """Settings that would change nothing: exclusions, patterns and layer indices without a match."""
    problems = []
    if config.exclude_modules:
        problems += _unmatched(config.exclude_modules, modules, "exclude_modules")
    for field, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        problems += [
            f"{field}: {pattern!r} matches no module; {_close(pattern, modules)}"
            for pattern in patterns
            if not any(match(rf"(.*\.)?({pattern})$", name) for name in modules)
        ]
    if config.layers_to_transform is not None:
        wanted = config.layers_to_transform
        present = {_layer_index(config, name + ".") for name in modules} - {None}
        absent = sorted(({wanted} if isinstance(wanted, int) else set(wanted)) - present)
        if absent:
            have = f"0 to {max(present)}" if present else "none (set layers_pattern)"  # type: ignore[type-var]
            problems.append(f"layers_to_transform: {absent} are no layers of this model, which has {have}")
    return problems
