"""Module paths of another model class or version."""

import dataclasses
from collections.abc import Sequence

from lorafit.errors import ConfigError
from lorafit.lora.stored import StoredAdapter, described
from lorafit.lora.stored.keys import renamer


def rename_modules(adapter: StoredAdapter, prefixes: Sequence[tuple[str, str]]) -> tuple[StoredAdapter, int]:
    """Put other prefixes before the paths of an adapter's modules; the numbers stay as they are.

    Args:
        adapter: The old adapter.
        prefixes: Old and new one, of whole names between dots: ("model.language_model", "model"). An empty old one is
            put before every path, an empty new one takes the old one away. The first that fits a path counts.

    Returns:
        The new adapter, and how many paths have changed.

    Raises:
        ConfigError: An old prefix begins no path, or two paths would become one.
    """
    names = [*adapter.updates, *adapter.whole]
    idle = [old for old, _ in prefixes if old and not any(f"{name}.".startswith(f"{old}.") for name in names)]
    if idle:
        raise ConfigError(
            f"no module's path begins with {' or '.join(map(repr, idle))}; the first is {names[0]}, and "
            "`lorafit adapters show ADAPTER --modules` lists all"
        )
    rename = renamer(prefixes)
    updates = {rename(name): update for name, update in adapter.updates.items()}
    whole = {rename(key): value for key, value in adapter.whole.items()}
    if len(updates) + len(whole) < len(names):
        raise ConfigError(f"with {_shown(prefixes)} two modules of the adapter would have the same path")
    entries = renamer([(old, new) for old, new in prefixes if old])  # an end of a path stays one
    config = dataclasses.replace(adapter.config)
    if isinstance(config.target_modules, list):
        config.target_modules = [entries(entry) for entry in config.target_modules]
    if config.modules_to_save:
        config.modules_to_save = [entries(entry) for entry in config.modules_to_save]
    changed = sum(rename(name) != name for name in adapter.updates)
    return StoredAdapter(described(config, updates), updates, whole), changed


def _shown(prefixes: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{old}={new}" for old, new in prefixes)
