"""The random generators that training may draw from, as JSON values."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_states() -> dict[str, Any]:
    """The state of every random generator that training may draw from, as JSON values."""
    python_version, python_words, python_gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    words = numpy_state["state"]
    return {
        "python": [python_version, list(python_words), python_gauss],
        "numpy": {**numpy_state, "state": {"key": words["key"].tolist(), "pos": int(words["pos"])}},
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "mps": _hex(torch.mps.get_rng_state()) if torch.mps.is_available() else None,
        "xpu": [_hex(state) for state in torch.xpu.get_rng_state_all()] if torch.xpu.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set every generator to what `random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    key = np.array(states["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**states["numpy"]["state"], "key": key}})
    torch.set_rng_state(_unhex(states["torch"]))
    if torch.cuda.is_available():
        for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):  # fewer than there were
            torch.cuda.set_rng_state(_unhex(state), device)
    if states["mps"] and torch.mps.is_available():
        torch.mps.set_rng_state(_unhex(states["mps"]))
    if torch.xpu.is_available():
        for device, state in enumerate(states["xpu"][: torch.xpu.device_count()]):
            torch.xpu.set_rng_state(_unhex(state), device)


def _hex(state: Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
