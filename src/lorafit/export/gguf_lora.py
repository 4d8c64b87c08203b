"""The adapter as a GGUF file, for llama.cpp's `--lora` over any GGUF of the base model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorafit.errors import ConfigError, RunError
from lorafit.export import TEXTS, Options, Written
from lorafit.export.gguf import check_packages
from lorafit.run import Run

OPTIONS: frozenset[str] = frozenset()
TASKS = TEXTS
FILE = "adapter.gguf"


def check(run: Run, options: Options) -> None:
    """Raise what llama.cpp's adapters cannot hold, before any work."""
    check_packages(options.verify)
    if run.is_classifier:
        raise RunError(f"{run.directory} is a classification, which llama.cpp does not run: take --to peft or merged")
    from lorafit.export._gguf import model

    model.check(run, run.load_tokenizer()[0])
    if problems := list(_problems(run)):
        raise ConfigError(f"llama.cpp has no such adapter: {'; '.join(problems)}. Take --to gguf")


def _problems(run: Run) -> Iterator[str]:
    import json

    from lorafit.export._weights import stream
    from lorafit.lora.layers.embedding import Layer as Embedding
    from lorafit.lora.peft_format import CONFIG_FILE
    from lorafit.lora.state import lora_layers

    config = json.loads((run.adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    if config.get("use_dora"):
        yield "this one is DoRA's"
    if config.get("modules_to_save"):
        yield f"modules_to_save {', '.join(config['modules_to_save'])} are whole modules"
    if config.get("bias", "none") != "none":
        yield f"it trained biases (bias {config['bias']!r})"
    if "loftq" in (config.get("init_lora_weights"), run.recipe.lora.init_lora_weights):
        yield "with init_lora_weights loftq it belongs to base weights that no GGUF file has"
    planned = stream.plan(run)
    if planned is None:
        yield "it adapts tensors that the base model's files hold otherwise"
        return
    ends = (planned.model.get_input_embeddings(), planned.model.get_output_embeddings())
    tied = planned.model.config.tie_word_embeddings
    if names := [name for name, layer in lora_layers(planned.model) if tied and layer in ends]:
        yield f"{', '.join(names)} shares its weight with the other end of the model"
    elif names := [
        name for name, layer in lora_layers(planned.model) if isinstance(layer, Embedding) and layer not in ends
    ]:
        yield f"{', '.join(names)} is no token embedding"


def write(run: Run, directory: Path, options: Options) -> Written:
    """Write the adapter, and compare it in llama.cpp, over the base model in float32, with the tuned model."""
    from lorafit.export._gguf import model
    from lorafit.export._gguf.weights import base_weights
    from lorafit.export._parity import llama_cpp
    from lorafit.export._parity.compare import compare
    from lorafit.export._parity.tuned import load_tuned
    from lorafit.export._weights.whole import was_quantized

    tuned = load_tuned(run, options.verify)
    assert tuned.template is not None
    file = directory / FILE
    _write_adapter(run, file)
    base = run.find_base()
    of_base = shlex.quote(base.reference) if base.kind == "gguf" else "BASE.gguf"
    notes = [f"Run it with: llama-cli -m {of_base} --lora {file}"]
    if base.kind != "gguf":
        notes.append(f"BASE.gguf is any GGUF file of {base.reference}.")
    if tuned.reference is None:
        return Written("float32", None, was_quantized(run), notes=notes)
    reference = tuned.reference
    with TemporaryDirectory(prefix=".base-", dir=directory.parent) as scratch:
        whole = Path(scratch) / "base.gguf"
        model.write(run, base_weights(run), whole, "f32", tuned.tokenizer, tuned.template)
        vocabulary = reference.tuned[0].shape[-1]
        said = llama_cpp.ask(whole, reference.questions, vocabulary, adapter=file)
    parity = compare(
        llama_cpp.runtime(), said.log_probabilities, reference.tuned, reference.base, [tuned.number_format]
    )
    return Written("float32", parity, was_quantized(run), notes=notes)


def _write_adapter(run: Run, file: Path) -> None:
    """A and B of every layer, scaled so that one alpha holds for all: llama.cpp adds `alpha / r` times B A."""
    import gguf

    from lorafit.export._gguf.architectures import architecture_of
    from lorafit.export._gguf.file import write_small
    from lorafit.export._gguf.model import base_config
    from lorafit.export._gguf.names import names_in_gguf
    from lorafit.export._weights import stream
    from lorafit.lora.layers.embedding import Layer as Embedding
    from lorafit.lora.state import lora_layers

    planned = stream.plan(run)
    assert planned is not None  # `check` has refused it
    config = base_config(run)
    architecture = architecture_of(config)
    layers = {f"{name}.weight": layer for name, layer in lora_layers(planned.model)}
    names = names_in_gguf(architecture.NAME, config.num_hidden_layers, layers)
    tensors: dict[str, Any] = {}
    alpha = 0.0
    for name, layer in layers.items():
        (adapter,) = layer.lora_active
        A, B = layer.lora_A[adapter].detach().float(), layer.lora_B[adapter].detach().float()
        rank = B.shape[1]
        alpha = alpha or layer.lora_scaling[adapter] * rank
        B = B * (layer.lora_scaling[adapter] * rank / alpha)
        if isinstance(layer, Embedding):  # llama.cpp looks rows of A up
            A = A.T
        else:
            B = architecture.rows(name, B, config)
        tensors[f"{names[name]}.lora_a"] = A.contiguous().numpy()
        tensors[f"{names[name]}.lora_b"] = B.contiguous().numpy()
    writer = gguf.GGUFWriter(file, architecture.NAME)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(run.directory.resolve().name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, run.find_base().reference)
    write_small(file, writer, tensors)
