"""A run's model as one GGUF file: described anew, or as the GGUF file that its base model came from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from lorafit.data import Template
from lorafit.export import NumberFormat
from lorafit.export._card import base_name, licence_of
from lorafit.export._gguf.architectures import Architecture, architecture_of
from lorafit.export._gguf.file import write_model
from lorafit.export._gguf.names import names_in_gguf
from lorafit.export._gguf.tokenizer import backend_of, describe_chat, describe_tokenizer, kind_of
from lorafit.export._gguf.weights import Weight, Weights
from lorafit.export._weights import stream
from lorafit.models import gguf_of
from lorafit.run import Run

OWN_KEYS = ("GGUF.", "general.architecture", "general.name", "general.file_type", "general.quantization_version",
            "general.alignment", "tokenizer.chat_template", "tokenizer.ggml.eot_token_id", "split.")  # fmt: skip


def base_config(run: Run) -> Any:
    """The config of a run's base model: of its text part, where it has several."""
    base = run.find_base()
    code = run.recipe.model.trust_remote_code
    config = AutoConfig.from_pretrained(
        base.path, revision=base.revision, local_files_only=True, trust_remote_code=code
    )
    return config.get_text_config()


def check(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where the run's model cannot be written as GGUF, before any work."""
    config = base_config(run)
    architecture = architecture_of(config)
    planned = stream.plan(run, adapter=False)
    if planned is not None:
        names_in_gguf(architecture.NAME, config.num_hidden_layers, [tensor.name for tensor in planned.stored])
    if run.find_base().kind not in ("demo", "gguf"):  # whose own tokenizer is kept
        kind_of(backend_of(tokenizer))


def write(
    run: Run, weights: Weights, file: Path, number_format: NumberFormat, tokenizer: PreTrainedTokenizerBase,
    template: Template,
) -> None:  # fmt: skip
    """Write `weights` as a GGUF file that llama.cpp runs.

    Args:
        run: whose model it is.
        weights: by the names of transformers' model.
        file: where to.
        number_format: of the matrices.
        tokenizer: what the model was trained with.
        template: the chat template that it was trained with.

    Raises:
        ModelError: The weights do not fit the architecture.
    """
    config = base_config(run)
    architecture = architecture_of(config)
    writer = gguf.GGUFWriter(file, architecture.NAME)
    writer.add_name(run.directory.resolve().name)
    names = names_in_gguf(architecture.NAME, config.num_hidden_layers, weights)
    with gguf_of(run.find_base()) as source:
        if source is None:
            _describe(run, writer)
            architecture.describe(config, writer)
            describe_tokenizer(tokenizer, template, config.vocab_size, writer)
            extra = architecture.extra_tensors(config)
            order = list(names.values())
        else:
            reader = gguf.GGUFReader(source)
            _copy_metadata(reader, writer)
            order = [tensor.name for tensor in reader.tensors]
            extra = {
                tensor.name: np.array(gguf.dequantize(tensor.data, tensor.tensor_type))  # the file is read-only
                for tensor in reader.tensors
                if tensor.name not in names.values()
            }
        describe_chat(tokenizer, template, writer)
        tensors = {
            target: Weight(
                _shape(architecture, config, name, weights[name]),
                partial(_values, architecture, config, name, weights[name]),
            )
            for name, target in names.items()
        }
        tensors |= {name: Weight(value.shape, partial(torch.from_numpy, value)) for name, value in extra.items()}
        ordered = [*order, *extra, *(tensors.keys() - {*order, *extra})]
        write_model(writer, {name: tensors[name] for name in dict.fromkeys(ordered)}, number_format)


def _describe(run: Run, writer: gguf.GGUFWriter) -> None:
    """What it was made of."""
    base = run.find_base()
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base_name(base))
    if (licence := licence_of(base)) is not None:
        writer.add_license(licence)


def _shape(architecture: Architecture, config: Any, name: str, weight: Weight) -> tuple[int, ...]:
    return tuple(architecture.values(name, torch.empty(weight.shape, device="meta"), config).shape)


def _values(architecture: Architecture, config: Any, name: str, weight: Weight) -> Tensor:
    """One weight as ggml computes with it, float32."""
    return architecture.rows(name, architecture.values(name, weight.read(), config), config)


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """Everything the base model's file says of itself, its tokenizer included, but what is written anew."""
    for key, field in reader.fields.items():
        if not key.startswith(OWN_KEYS):
            kind, *rest = field.types
            writer.add_key_value(key, field.contents(), kind, rest[-1] if rest else None)
