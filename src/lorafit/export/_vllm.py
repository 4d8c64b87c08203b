"""What vLLM takes of an adapter (its `lora/peft_helper.py` and `config/lora.py`), and the command that serves it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from lorafit.errors import ConfigError
from lorafit.run import Run

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def check(run: Run) -> None:
    """Refuse an adapter that vLLM would refuse, or would compute differently.

    Raises:
        ConfigError: all reasons at once, and what to do.
    """
    if problems := list(_problems(run)):
        name = shlex.quote(f"{run.directory}-merged")
        raise ConfigError(
            f"vLLM does not serve this adapter: {'; '.join(problems)}. Serve the merged model in its place:\n"
            f"  lorafit export {shlex.quote(str(run.directory))} --to merged --output-dir {name}\n  vllm serve {name}"
        )


def _problems(run: Run) -> Any:
    from lorafit.export._weights.whole import base_config
    from lorafit.lora.peft_format import CONFIG_FILE

    config = json.loads((run.adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    kind = base_config(run).get("model_type")
    if run.is_classifier:
        yield "it is a classifier's"
    elif kind not in ARCHITECTURES:
        yield f"lorafit knows no adapters for {kind} there, only for {', '.join(ARCHITECTURES)}"
    if config["r"] > RANKS[-1]:
        yield f"its rank is {config['r']}, and at most {RANKS[-1]} are served"
    if config.get("use_dora"):
        yield "it is DoRA's"
    if config.get("modules_to_save"):
        yield f"modules_to_save {', '.join(config['modules_to_save'])} are whole modules"
    if config.get("bias", "none") != "none":
        yield f"it trained biases (bias {config['bias']!r})"
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            yield f"{name} gives layers ranks or scales of their own, which would be left out"
    if others := sorted(_adapted(run) - MODULES):
        yield f"it adapts {', '.join(others)}, not only linear layers inside the blocks"


def _adapted(run: Run) -> set[str]:
    """The last names of the adapted modules."""
    from safetensors import safe_open

    from lorafit.lora.peft_format import WEIGHTS_FILE

    with safe_open(run.adapter / WEIGHTS_FILE, framework="pt", backend="pread") as tensors:
        return {key.split(".lora_")[0].rpartition(".")[2] for key in tensors.keys() if ".lora_" in key}  # noqa: SIM118  # no dict


def command(run: Run, directory: Path, config: dict[str, Any]) -> str:
    """The command line that serves the adapter, under the run's name."""
    rank = next(rank for rank in RANKS if rank >= config["r"])
    base, folder = run.find_base(), directory.resolve()
    words = ["vllm", "serve", base.path, "--enable-lora", "--max-lora-rank", str(rank)]
    words += ["--revision", base.revision] if base.revision else []
    words += ["--lora-modules", f"{run.directory.resolve().name}={folder}"]
    words += ["--chat-template", str(folder / "chat_template.jinja")]
    return shlex.join(words)
