"""What differs between tasks on the way from a recipe to an adapter; everything else is the same code."""

import importlib.util
import json
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from datasets import Dataset
from transformers import PreTrainedModel

from lorafit.data import ClassSummary, Prepared, PreparedClasses, PreparedSeq2Seq, PreparedTags, Summary, TagSummary
from lorafit.errors import ConfigError, MissingExtraError, ModelError
from lorafit.lora import LoraConfig, attach
from lorafit.models import (
    TOKEN_CLASSIFICATION,
    HeadKind,
    ResolvedModel,
    load_classifier,
    load_model,
    original_weights,
    pick_device,
    settle_decoder_start,
)
from lorafit.recipe import Recipe
from lorafit.run import LABELS_FILE, TEMPLATE_FILE
from lorafit.train.classification import ClassificationLoss
from lorafit.train.loss import DocumentLoss, LabelLoss
from lorafit.train.rows import class_weights
from lorafit.train.seq2seq import Seq2SeqLoss
from lorafit.train.token_classification import TagLoss


class Rows(Protocol):
    """What every task's prepared rows have."""

    @property
    def train(self) -> Dataset: ...  # noqa: D102

    @property
    def held_out(self) -> Dataset: ...  # noqa: D102

    @property
    def summary(self) -> Summary | ClassSummary | TagSummary: ...  # noqa: D102


RowsT = TypeVar("RowsT", bound=Rows, contravariant=True)


class Task(Protocol, Generic[RowsT]):
    """A task of the recipe."""

    def adapted_model(self, resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, rows: RowsT) -> PreTrainedModel:
        """The base model with a fresh adapter."""
        ...

    def loss(self, model: PreTrainedModel, recipe: Recipe, rows: RowsT) -> DocumentLoss:
        """What training minimizes."""
        ...

    def beside_adapter(self, rows: RowsT) -> dict[str, str]:
        """What an adapter is saved with: texts by file name."""
        ...


class TextGeneration:
    """`task: sft`."""

    def adapted_model(self, resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, rows: Prepared) -> PreTrainedModel:
        """A causal language model; any other is a ModelError."""
        model = load_model(resolved, **recipe.model.loading)
        if model.config.is_encoder_decoder or not model.can_generate():
            other = "seq2seq" if model.config.is_encoder_decoder else "classification"
            raise ModelError(
                f"{resolved.reference} is a {type(model).__name__}; task sft trains causal language models only: "
                f"give one, such as demo:gemma-3-270m, or set task: {other}"
            )
        _seed(recipe)
        _attach(model, lora_config(recipe), resolved)
        return model

    def loss(self, model: PreTrainedModel, recipe: Recipe, rows: Prepared) -> LabelLoss:
        """Cross entropy of each labelled token."""
        return LabelLoss(model)

    def beside_adapter(self, rows: Prepared) -> dict[str, str]:
        """The chat template."""
        return {TEMPLATE_FILE: rows.template.source}


class Classification:
    """`task: classification`."""

    def adapted_model(
        self, resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, rows: PreparedClasses
    ) -> PreTrainedModel:
        """A classifier whose head is drawn from the recipe's seed, and trained whole beside the adapter."""
        return _with_fresh_head(resolved, recipe, tokenizer, rows.labels, rows.problem_type)

    def loss(self, model: PreTrainedModel, recipe: Recipe, rows: PreparedClasses) -> ClassificationLoss:
        """The loss of each document's label."""
        return ClassificationLoss(model, class_weights(recipe.train.class_weights, rows))

    def beside_adapter(self, rows: PreparedClasses) -> dict[str, str]:
        """The class names and what labels are, as transformers' config.json has them."""
        return {LABELS_FILE: _label_file(rows.labels, problem_type=rows.problem_type)}


class Seq2Seq:
    """`task: seq2seq`."""

    def adapted_model(
        self, resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, rows: PreparedSeq2Seq
    ) -> PreTrainedModel:
        """An encoder-decoder; any other model is a ModelError."""
        model = load_model(resolved, seq2seq=True, **recipe.model.loading)
        settle_decoder_start(model, rows.template.target_start, rows.template.target_end)
        _seed(recipe)
        _attach(model, lora_config(recipe), resolved)
        return model

    def loss(self, model: PreTrainedModel, recipe: Recipe, rows: PreparedSeq2Seq) -> Seq2SeqLoss:
        """Cross entropy of each token of a target."""
        return Seq2SeqLoss(model)

    def beside_adapter(self, rows: PreparedSeq2Seq) -> dict[str, str]:
        """Nothing: prefix and languages stand in the recipe."""
        return {}


class TokenClassification:
    """`task: token_classification`."""

    def adapted_model(
        self, resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, rows: PreparedTags
    ) -> PreTrainedModel:
        """A tagger whose head is drawn from the recipe's seed, and trained whole beside the adapter."""
        return _with_fresh_head(resolved, recipe, tokenizer, rows.labels, TOKEN_CLASSIFICATION)

    def loss(self, model: PreTrainedModel, recipe: Recipe, rows: PreparedTags) -> TagLoss:
        """Cross entropy of each word's tag."""
        return TagLoss(model)

    def beside_adapter(self, rows: PreparedTags) -> dict[str, str]:
        """The tags."""
        return {LABELS_FILE: _label_file(rows.labels, problem_type=TOKEN_CLASSIFICATION)}


def _with_fresh_head(
    resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, labels: tuple[str, ...], kind: HeadKind
) -> PreTrainedModel:
    _seed(recipe)
    model, fresh = load_classifier(resolved, labels, kind, **recipe.model.loading)
    config = model.config.get_text_config()
    if config.pad_token_id is None:  # decoders find the last token of padded texts by it
        config.pad_token_id = tokenizer.pad_token_id
    _seed(recipe)
    asked = lora_config(recipe)
    saved: set[str] = {*(asked.modules_to_save or []), *fresh}
    _attach(model, replace(asked, modules_to_save=_outermost(saved) or None), resolved)
    return model


def _label_file(labels: tuple[str, ...], **more: str) -> str:
    """Names and ids of classes, as transformers' config.json has them."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}, **more}
    return json.dumps(names, indent=2, ensure_ascii=False) + "\n"


TASKS: dict[str, Task[Any]] = {
    "sft": TextGeneration(),
    "classification": Classification(),
    "token_classification": TokenClassification(),
    "seq2seq": Seq2Seq(),
}


def check_optimizer(recipe: Recipe) -> None:
    """Refuse an optimizer that this machine cannot run, before any work.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        ConfigError: A paged one without a CUDA device.
    """
    optim = recipe.train.optim
    if optim.startswith("adamw_torch"):
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            f"train.optim {optim} needs bitsandbytes: pip install 'lorafit[quant]', or set train.optim "
            "adamw_torch_fused"
        )
    device = pick_device(recipe.model.device).type
    if optim.startswith("paged_") and device != "cuda":
        raise ConfigError(
            f"train.optim {optim} moves its state between a CUDA device's memory and the CPU's, and this runs on "
            f"{device}: set train.optim {'adamw_bnb_8bit' if optim.endswith('8bit') else 'adamw_torch_fused'}"
        )


def _seed(recipe: Recipe) -> None:
    from transformers import set_seed  # its module imports PEFT and bitsandbytes, where they are; a plan needs neither

    set_seed(recipe.train.seed)


def lora_config(recipe: Recipe) -> LoraConfig:
    """The recipe's `lora` section."""
    return LoraConfig.from_dict({**recipe.lora.model_dump(), "task_type": recipe.adapter_task_type})


def _attach(model: PreTrainedModel, config: LoraConfig, resolved: ResolvedModel) -> None:
    """Attach a fresh adapter; LoftQ's start reads the checkpoint again, as it was before quantization."""
    loftq = config.init_lora_weights == "loftq"
    attach(model, config, read_original=original_weights(resolved.path, resolved.revision) if loftq else None)


def _outermost(names: set[str]) -> list[str]:
    """Without the names that lie inside a head that the task's type saves whole anyway (`classifier.dense`)."""
    return sorted(name for name in names if name.partition(".")[0] not in ("classifier", "score"))
