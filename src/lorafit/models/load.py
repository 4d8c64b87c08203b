"""Read a resolved model and its tokenizer through transformers: safetensors only, no remote code unless asked for."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from lorafit.allocator import give_back_at_once
from lorafit.collection import collection_paused
from lorafit.errors import ConfigError, LorafitError, MissingExtraError, ModelError, PlanError
from lorafit.models.quantize import (
    Quantize,
    check_quantized,
    is_quantized_already,
    one_tensor_at_a_time,
    quantization_config,
    read_by_lorafit,
)
from lorafit.models.quiet import quiet_transformers, without_load_report
from lorafit.models.resolve import ResolvedModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "bf16", "fp32", "fp16"]

HeadKind = Literal["single_label_classification", "multi_label_classification", "regression", "token_classification"]
"""transformers' `problem_type` of a head on a text, or a head on each of its tokens."""
TOKEN_CLASSIFICATION: HeadKind = "token_classification"

# transformers' names of what stands on the body of a classifier: trained whole, so never quantized
CLASSIFIER_HEADS = ["classifier", "pre_classifier", "score", "pooler", "head"]

_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<PAD>", "<|finetune_right_pad_id|>", "<|vision_pad|>")
_SPARE = re.compile(r"reserved|unused|placeholder|extra_0|dummy", re.IGNORECASE)


def load_tokenizer(resolved: ResolvedModel, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Load the tokenizer; a missing pad token is chosen among the tokens it has, never added.

    Args:
        resolved: what `resolve` returned.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        ModelError: not there, not readable, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    with _explained(resolved, "tokenizer"), collection_paused():
        tokenizer = AutoTokenizer.from_pretrained(
            resolved.path, trust_remote_code=trust_remote_code, **_source(resolved)
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _spare_token(tokenizer)
    return tokenizer


def load_model(
    resolved: ResolvedModel,
    *,
    dtype: "Dtype | torch.dtype" = "auto",
    device: "str | torch.device | None" = None,
    quantize: Quantize = "none",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    seq2seq: bool = False,
) -> "PreTrainedModel":
    """Load the base model, in evaluation mode.

    Args:
        resolved: what `resolve` returned.
        dtype: of the weights; "auto" is `pick_dtype(device)`.
        device: where to; None or "auto" is `pick_device()`.
        quantize: "nf4" or "int8" holds the linear layers but the head in 4 or 8 bits, one tensor after the other. A
            checkpoint that was saved in bitsandbytes' formats stays as it is.
        trust_remote_code: run the Python code that comes with the model.
        allow_pickle: also take weights in PyTorch's pickle format, which can run code when they are read.
        seq2seq: with a head on its decoder also where an encoder-decoder was saved without (BART).

    Returns:
        A causal (or sequence-to-sequence) language model where the checkpoint is one, else the bare encoder.

    Raises:
        ModelError: not there, not readable, weights missing, no encoder-decoder where one was asked for, or the hub
            cannot be reached.
    """
    place = pick_device(device)
    torch_dtype = dtype_on(dtype, place)
    placement = _placement(place, quantize, torch_dtype)
    with _explained(resolved, "model"):
        config, auto = _config_and_class(resolved, trust_remote_code, seq2seq)
        if is_quantized_already(config, quantize, resolved.reference):
            placement["quantization_config"] = None
        with one_tensor_at_a_time(_changes(config, quantize, torch_dtype)):
            model, info = auto.from_pretrained(
                resolved.path,
                config=config,
                dtype=torch_dtype,
                use_safetensors=None if allow_pickle else True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **placement,
                **_source(resolved),
            )
    read_by_lorafit(model)
    check_quantized(model, quantize, resolved.reference)
    if missing := sorted(name for name in info["missing_keys"] if "pooler." not in name):
        raise ModelError(
            f"{resolved.reference} lacks {len(missing)} weights of a {type(model).__name__}, so it would start from "
            f"random ones: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Give a complete model"
        )
    return model.eval()


def load_classifier(
    resolved: ResolvedModel,
    labels: Sequence[str],
    kind: HeadKind = "single_label_classification",
    *,
    dtype: "Dtype | torch.dtype" = "auto",
    device: "str | torch.device | None" = None,
    quantize: Quantize = "none",
    trust_remote_code: bool = False,
) -> "tuple[PreTrainedModel, list[str]]":
    """Load the base model with a classifier's head on it, in evaluation mode.

    Args:
        resolved: what `resolve` returned.
        labels: the class names, by id.
        kind: what the head says: one class of a text, any number of them, an amount, or a class of each token.
        dtype: of the weights; "auto" is `pick_dtype(device)`.
        device: where to; None or "auto" is `pick_device()`.
        quantize: "nf4" or "int8" holds the linear layers but the head in 4 or 8 bits, one tensor after the other. A
            checkpoint that was saved in bitsandbytes' formats stays as it is.
        trust_remote_code: run the Python code that comes with the model.

    Returns:
        The model, and the names of its modules that the checkpoint lacks: the head, freshly drawn from torch's default
        generator (seed it to draw the same again), which must be trained whole.

    Raises:
        ModelError: not there, not readable, no classifier of its kind, weights of its body missing, or the hub cannot
            be reached.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    place = pick_device(device)
    torch_dtype = dtype_on(dtype, place)
    placement = _placement(place, quantize, torch_dtype, keep=CLASSIFIER_HEADS)
    with _explained(resolved, "classifier"), without_load_report():
        config = AutoConfig.from_pretrained(resolved.path, trust_remote_code=trust_remote_code, **_source(resolved))
        if is_quantized_already(config, quantize, resolved.reference):
            placement["quantization_config"] = None
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        config.problem_type = None if kind == "token_classification" else kind
        auto = AutoModelForTokenClassification if kind == TOKEN_CLASSIFICATION else AutoModelForSequenceClassification
        with one_tensor_at_a_time(_changes(config, quantize, torch_dtype)):
            model, info = auto.from_pretrained(
                resolved.path,
                config=config,
                dtype=torch_dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # a head for other classes gives way to a fresh one
                output_loading_info=True,
                **placement,
                **_source(resolved),
            )
    read_by_lorafit(model)
    check_quantized(model, quantize, resolved.reference)
    fresh = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    body = f"{model.base_model_prefix}."
    if missing := sorted(name for name in fresh if name.startswith(body) and "pooler." not in name):
        raise ModelError(
            f"{resolved.reference} lacks {len(missing)} weights of a {type(model).__name__}, so it would start from "
            f"random ones: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Give a complete model"
        )
    return model.eval(), sorted({name.rpartition(".")[0] for name in fresh})


def architecture(
    resolved: ResolvedModel, task: str, *, trust_remote_code: bool = False
) -> "tuple[PreTrainedConfig, type[PreTrainedModel]]":
    """The config and transformers' class of what `load_model`, or `load_classifier`, would load; no weights are read.

    Args:
        resolved: what `resolve` returned.
        task: "sft", "classification", "token_classification" or "seq2seq".
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        ModelError: The config is not there or not readable.
        PlanError: transformers itself has no such class; its code comes with the model.
    """
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    with _explained(resolved, "model"):
        config, auto = _config_and_class(resolved, trust_remote_code, task == "seq2seq")
    heads = {
        "classification": AutoModelForSequenceClassification,
        TOKEN_CLASSIFICATION: AutoModelForTokenClassification,
    }
    auto = heads.get(task, auto)
    known: Any = auto._model_mapping
    if type(config) not in known:
        raise PlanError(f"{resolved.reference} ({config.model_type}) is no model of transformers' own")
    return config, known[type(config)]


def context_length(model: "PreTrainedModel") -> int | None:
    """The most tokens the model reads, prompt and answer together; None where its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def pick_device(device: "str | torch.device | None" = None) -> "torch.device":
    """The device meant: the given one, or the first of CUDA, MPS and CPU that this machine has.

    Raises:
        ConfigError: a device that PyTorch does not see here.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device in (None, "auto"):
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    place = torch.device(device)
    if (place.type == "cuda" and not cuda) or (place.type == "mps" and not mps):
        raise ConfigError(f"device {device!r}: PyTorch {torch.__version__} sees none here; use cpu or auto")
    return place


def pick_dtype(device: "str | torch.device | None" = None) -> "torch.dtype":
    """bf16 where the device multiplies it fast, else fp32.

    Fast are CUDA devices of capability 8.0 and up, Apple's GPUs, and processors with AVX512-BF16 or AMX. Others
    emulate bf16: a product then takes several times fp32's time.
    """
    import torch

    place = pick_device(device)
    if place.type == "cuda":
        fast = torch.cuda.get_device_capability(place) >= (8, 0)
    else:
        fast = place.type == "mps" or _cpu_multiplies_bf16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether Linux lists a bf16 matrix or dot product instruction; elsewhere it cannot be asked, so False."""
    if not cpuinfo.is_file():
        return False
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[1].split())


def dtype_on(dtype: "Dtype | torch.dtype", device: "torch.device") -> "torch.dtype":
    """The dtype meant: the given one, or `pick_dtype(device)` for "auto"."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    names = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
    if dtype != "auto" and dtype not in names:
        raise ConfigError(f"dtype {dtype!r} must be auto, bf16, fp32 or fp16")
    return pick_dtype(device) if dtype == "auto" else names[dtype]


def _placement(
    device: "torch.device", quantize: Quantize, dtype: "torch.dtype", keep: list[str] | None = None
) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where the weights go, and in which form."""
    quantization = quantization_config(quantize, dtype, keep)
    if quantization is not None and device.type == "cpu":
        give_back_at_once()  # each tensor, after it was quantized
    device_map = None if device.type == "cpu" and quantization is None else {"": device}
    return {"device_map": device_map, "quantization_config": quantization}


def _changes(config: "PreTrainedConfig", quantize: Quantize, dtype: "torch.dtype") -> bool:
    """Whether weights are held otherwise than in the checkpoint."""
    return quantize != "none" or config.dtype not in (None, dtype)


def _config_and_class(
    resolved: ResolvedModel, trust_remote_code: bool, seq2seq: bool = False
) -> "tuple[PreTrainedConfig, Any]":
    """The config, and the auto class of the kind that the checkpoint was saved as, or of `seq2seq`.

    Raises:
        ModelError: It is no encoder-decoder where one was asked for.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.models.auto import modeling_auto

    config = AutoConfig.from_pretrained(resolved.path, trust_remote_code=trust_remote_code, **_source(resolved))
    saved_as = set(config.architectures or [])
    if seq2seq:
        if not config.is_encoder_decoder:
            raise ModelError(
                f"{resolved.reference} ({config.model_type}) is no encoder-decoder, and task seq2seq trains only these "
                "(T5, BART, Pegasus, mBART, Marian, ...): give one, or set task: sft"
            )
        return config, AutoModelForSeq2SeqLM
    if saved_as & set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()):
        return config, AutoModelForSeq2SeqLM
    causal = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    remote = "AutoModelForCausalLM" in (config.to_dict().get("auto_map") or {})
    return config, AutoModelForCausalLM if not saved_as or saved_as & causal or remote else AutoModel


def _spare_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A token to pad with: one made for it, one without a use, the unknown token, or else the end of text.

    Padding with the end of text would teach nothing wrong (padded labels are never trained), but programs that mask
    by token id would drop the real ends.
    """
    vocabulary = tokenizer.get_vocab()
    special = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=vocabulary.__getitem__)
    candidates = [
        *(name for name in _PAD_NAMES if name in vocabulary),
        *(name for name in special if _SPARE.search(name)),
        tokenizer.unk_token,
    ]
    for name in candidates:
        if name is not None and name not in (tokenizer.eos_token, tokenizer.bos_token):
            return str(name)
    if tokenizer.eos_token is None:
        raise ModelError(f"The tokenizer of {tokenizer.name_or_path} has neither a pad nor an end token: set one in it")
    return str(tokenizer.eos_token)


def _source(resolved: ResolvedModel) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where to look."""
    if resolved.kind != "hub":
        return {"local_files_only": True}
    return {"revision": resolved.revision or "main", "local_files_only": not _hub_answers()}


def _hub_answers() -> bool:
    """Whether the hub's name can be looked up; without this, being offline costs a minute of retries."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if "https" in getproxies() or "all" in getproxies():
        return True  # the proxy looks names up
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _explained(resolved: ResolvedModel, what: str) -> Iterator[None]:
    """Turn what transformers and the hub raise into one line that says how to go on."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        with contextlib.nullcontext() if resolved.kind == "hub" else quiet_transformers():
            yield
    except LorafitError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"The {what} of {resolved.reference} needs another package: {error}") from error
    except (OSError, ValueError) as error:
        chain, cause = [], error
        while cause is not None and cause not in chain:
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
        kinds = tuple(type(cause) for cause in chain)
        if any(issubclass(kind, GatedRepoError) for kind in kinds):
            line = "is gated: accept its terms on its page at the hub, then `hf auth login`"
        elif any(issubclass(kind, RepositoryNotFoundError) for kind in kinds):
            line = "is not at the hub (or is private: `hf auth login`), and there is no such directory here"
        elif any(issubclass(kind, LocalEntryNotFoundError) for kind in kinds):
            line = (
                "is not in the hub's cache on this machine, and the hub cannot be reached: go online, give a directory "
                "or a GGUF file, or try demo:gemma-3-270m"
            )
        elif "trust_remote_code" in str(error):
            line = "carries its own Python code; if you trust its authors, set model.trust_remote_code to true"
        elif "safetensors" in str(error):
            line = "has no safetensors weights (pickled ones can run code): convert it, or take a copy that has them"
        else:
            line = f"cannot be loaded as a {what}: {' '.join(str(error).split())}"
        raise ModelError(f"{resolved.reference} {line}") from error
