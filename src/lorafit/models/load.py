"""Read a resolved model and its tokenizer through transformers: safetensors only, no remote code unless asked for."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lorafit.allocator import give_back_at_once
from lorafit.errors import ModelError, PlanError
from lorafit.models.devices import Dtype, dtype_on, pick_device
from lorafit.models.guard import announce_code, announce_pickle, check_config, check_model
from lorafit.models.quantize import (
    Quantize,
    check_quantized,
    is_quantized_already,
    quantization_config,
    read_by_lorafit,
)
from lorafit.models.reading import one_tensor_at_a_time
from lorafit.models.resolve import ResolvedModel
from lorafit.models.source import explained, source_of
from lorafit.quiet import without_load_report

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


HeadKind = Literal["single_label_classification", "multi_label_classification", "regression", "token_classification"]
"""transformers' `problem_type` of a head on a text, or a head on each of its tokens."""
TOKEN_CLASSIFICATION: HeadKind = "token_classification"

# transformers' names of what stands on the body of a classifier: trained whole, so never quantized
CLASSIFIER_HEADS = ["classifier", "pre_classifier", "score", "pooler", "head"]

# Models whose first position is the one behind the number of the padding token, as RoBERTa's: so many are not used.
BEHIND_PADDING = {
    "roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "mpnet", "longformer",
    "data2vec-text", "ibert", "luke", "xmod", "esm", "lilt",
}  # fmt: skip


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
    read = _Reading(resolved, dtype, device, quantize, trust_remote_code, allow_pickle)
    with explained(resolved, "model"):
        config, auto = _config_and_class(resolved, trust_remote_code, seq2seq)
        model, info = read(auto, config)
    read.check(model, info["missing_keys"])
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
    allow_pickle: bool = False,
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
        allow_pickle: also take weights in PyTorch's pickle format, which can run code when they are read.

    Returns:
        The model, and the names of its modules that the checkpoint lacks: the head, freshly drawn from torch's default
        generator (seed it to draw the same again), which must be trained whole.

    Raises:
        ModelError: not there, not readable, no classifier of its kind, weights of its body missing, or the hub cannot
            be reached.
    """
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    read = _Reading(resolved, dtype, device, quantize, trust_remote_code, allow_pickle, keep=CLASSIFIER_HEADS)
    with explained(resolved, "classifier"), without_load_report():
        config = _config(resolved, trust_remote_code)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        config.problem_type = None if kind == "token_classification" else kind
        auto = AutoModelForTokenClassification if kind == TOKEN_CLASSIFICATION else AutoModelForSequenceClassification
        model, info = read(auto, config, ignore_mismatched_sizes=True)  # a head for other classes gives way to a fresh
    fresh = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    body = f"{model.base_model_prefix}."
    read.check(model, (name for name in fresh if name.startswith(body)))
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

    with explained(resolved, "model"):
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


def context_of(resolved: ResolvedModel, *, trust_remote_code: bool = False) -> int | None:
    """What `context_length` gives of the model, from its config alone.

    Raises:
        ModelError: The config is not there or not readable.
    """
    with explained(resolved, "model"):
        return _context(_config(resolved, trust_remote_code))


def context_length(model: "PreTrainedModel") -> int | None:
    """The most tokens the model reads, prompt and answer together; None where its config sets no limit."""
    return _context(model.config)


def _context(config: "PreTrainedConfig") -> int | None:
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and text.model_type in BEHIND_PADDING:
        return positions - (text.pad_token_id or 0) - 1
    return positions


class _Reading:
    """How weights are read: their type, where to, quantized or not, which files are trusted."""

    def __init__(
        self,
        resolved: ResolvedModel,
        dtype: "Dtype | torch.dtype",
        device: "str | torch.device | None",
        quantize: Quantize,
        trust_remote_code: bool,
        allow_pickle: bool,
        keep: list[str] | None = None,
    ) -> None:
        self.resolved, self.reference = resolved, resolved.reference
        self.quantize: Quantize = quantize
        self.device = pick_device(device)
        self.dtype = dtype_on(dtype, self.device)
        self.quantization = quantization_config(quantize, self.dtype, keep)
        self.trusted = {
            "use_safetensors": None if allow_pickle else True,
            "trust_remote_code": trust_remote_code,
        }
        if allow_pickle:
            announce_pickle(self.reference)

    def __call__(self, auto: Any, config: "PreTrainedConfig", **more: Any) -> "tuple[Any, dict[str, Any]]":
        """The model, and transformers' account of what its files lacked; `more` goes to `from_pretrained`."""
        on_cpu, quantized = self.device.type == "cpu", self.quantization is not None
        if quantized and on_cpu:
            give_back_at_once()  # each tensor, after it was quantized
        as_saved = is_quantized_already(config, self.quantize, self.reference)
        with one_tensor_at_a_time(self.quantize != "none" or config.dtype not in (None, self.dtype)):
            return auto.from_pretrained(
                self.resolved.path,
                config=config,
                dtype=self.dtype,
                device_map=None if on_cpu and not quantized else {"": self.device},
                quantization_config=None if as_saved else self.quantization,
                output_loading_info=True,
                **self.trusted,
                **source_of(self.resolved),
                **more,
            )

    def check(self, model: "PreTrainedModel", missing: Iterable[str]) -> None:
        """Refuse a model that is not what was asked for.

        Raises:
            ModelError: Weights are `missing` from its files, but a pooler, which no task of ours reads untrained; or a
                layer that cannot be held as `quantize` says.
        """
        read_by_lorafit(model)
        check_quantized(model, self.quantize, self.reference)
        if absent := sorted(name for name in missing if "pooler." not in name):
            raise ModelError(
                f"{self.reference} lacks {len(absent)} weights of a {type(model).__name__}, so it would start from "
                f"random ones: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}. Give a complete model"
            )


def _config(resolved: ResolvedModel, trust_remote_code: bool) -> "PreTrainedConfig":
    """The config of a model whose files were found to stay in their folder."""
    from transformers import AutoConfig

    if trust_remote_code:
        announce_code(resolved.reference)
    source = source_of(resolved)
    check_config(resolved, source)
    config = AutoConfig.from_pretrained(resolved.path, trust_remote_code=trust_remote_code, **source)
    check_model(resolved, config, source, trusted=trust_remote_code)
    return config


def _config_and_class(
    resolved: ResolvedModel, trust_remote_code: bool, seq2seq: bool = False
) -> "tuple[PreTrainedConfig, Any]":
    """The config, and the auto class of the kind that the checkpoint was saved as, or of `seq2seq`.

    Raises:
        ModelError: It is no encoder-decoder where one was asked for.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.models.auto import modeling_auto

    config = _config(resolved, trust_remote_code)
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
