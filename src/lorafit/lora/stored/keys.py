"""The keys of adapter files: what belongs there, and what wrappers, raw state dicts and other models leave."""

import re
from collections.abc import Callable, Iterable, Sequence

from lorafit.errors import ConfigError
from lorafit.lora.peft_format import PREFIX

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch.compile, FSDP, checkpointing
_LORA = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB])(?:\.(?P<adapter>(?!weight$)[^.]+))?(?P<weight>\.weight)?"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<parameter>.+)")


def plain_key(key: str) -> tuple[str, list[str]]:
    """A key as PEFT would write it, without its prefix, and what was odd about it."""
    odd = []
    parts = key.split(".")
    if any(part in _WRAPPERS for part in parts):
        odd.append(f"{', '.join(sorted(set(parts) & set(_WRAPPERS)))} within the keys")
        key = ".".join(part for part in parts if part not in _WRAPPERS)
    if key.startswith(f"module.{PREFIX}"):
        odd.append("'module.' before the keys")
        key = key.removeprefix("module.")
    if key.startswith(PREFIX):
        key = key.removeprefix(PREFIX)
    else:
        odd.append(f"keys without {PREFIX!r}")
    while key.startswith(PREFIX):
        odd.append(f"{PREFIX!r} twice before the keys")
        key = key.removeprefix(PREFIX)
    if (match := _LORA.fullmatch(key)) and match["adapter"]:
        odd.append(f"the adapter's name {match['adapter']!r} within the keys")
        key = f"{match['module']}.{match['part']}" + ".weight" * ("embedding" not in match["part"])
    elif match and bool(match["weight"]) == ("embedding" in match["part"]):
        odd.append("keys with '.weight' where it does not belong, or without")
        key = f"{match['module']}.{match['part']}" + ".weight" * ("embedding" not in match["part"])
    elif match := _SAVED.fullmatch(key):
        odd.append(f"the adapter's name {match['adapter']!r} within the keys")
        key = f"{match['module']}.{match['parameter']}"
    return key, odd


def split_key(key: str) -> tuple[str, str | None]:
    """Module and part (`lora_A`, `lora_embedding_B`, ...) of a plain key; the part is None for anything else."""
    match = _LORA.fullmatch(key)
    return (match["module"], match["part"]) if match else (key, None)


def renamer(prefixes: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    """What puts for each path that begins with an old prefix the new one; the first that fits counts.

    Args:
        prefixes: Old and new one, of whole names between dots; an empty old one fits every path.
    """

    def rename(name: str) -> str:
        for old, new in prefixes:
            if _under(name, old):
                rest = name[len(old) :].lstrip(".")
                return ".".join(part for part in (new, rest) if part)
        return name

    return rename


def find_prefixes(names: Iterable[str], modules: Iterable[str]) -> list[tuple[str, str]]:
    """The prefixes that lead from an adapter's module paths to those of a model; none where they are the same.

    Args:
        names: The adapter's.
        modules: The model's.

    Raises:
        ConfigError: A path has no counterpart, or several.
    """
    names, modules, found = list(names), set(modules), []
    while True:
        rename = renamer(found)
        strange = [name for name in names if rename(name) not in modules]
        if not strange:
            return found
        found.append(_prefix(strange, modules))


def _prefix(names: Sequence[str], modules: set[str]) -> tuple[str, str]:
    """A prefix that takes the first of `names`, and all others that begin alike, to modules; the longest end counts."""
    parts = names[0].split(".")
    for start in range(len(parts)):
        old, end = ".".join(parts[:start]), ".".join(parts[start:])
        news = [module.removesuffix(end).rstrip(".") for module in modules if f".{module}".endswith(f".{end}")]
        alike = [name for name in names if _under(name, old)]
        fit = sorted(new for new in news if all(renamer([(old, new)])(name) in modules for name in alike))
        if len(fit) == 1:
            return old, fit[0]
        if fit:
            choices = ", ".join(f"--prefix {old}={new}" for new in fit[:4])
            raise ConfigError(f"{names[0]} has several counterparts in the model: say which, by {choices}")
    raise ConfigError(f"{names[0]} has no counterpart in the model: the adapter belongs to another base model")


def _under(name: str, prefix: str) -> bool:
    return not prefix or f"{name}.".startswith(f"{prefix}.")
