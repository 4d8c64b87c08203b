"""From the names of a model's weights to ggml's, by the gguf package's own table."""

from __future__ import annotations

from collections.abc import Iterable

import gguf

from lorafit.errors import ModelError

ENDINGS = (".weight", ".bias")


def names_in_gguf(architecture: str, layers: int, names: Iterable[str]) -> dict[str, str]:
    """Ggml's name of each weight.

    Args:
        architecture: ggml's name of it.
        layers: number of blocks.
        names: in the model.

    Raises:
        ModelError: some have no place in this architecture; it lists them.
    """
    (key,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(key, layers)
    found = {name: table.get_name(name, try_suffixes=ENDINGS) for name in names}
    if missing := [name for name, target in found.items() if target is None]:
        raise ModelError(
            f"{architecture} in GGUF has no place for {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}: "
            "take --to merged"
        )
    return {name: target for name, target in found.items() if target is not None}
