"""What differs between tasks on the way from a recipe to an adapter; everything else is the same code."""

import importlib.util
import json
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lorafit.data import ClassSummary, Prepared, PreparedClasses, PreparedSeq2Seq, Summary
from lorafit.errors import ConfigError, MissingExtraError, ModelError
from lorafit.lora import LoraConfig, attach
from lorafit.models import (
    ResolvedModel,
    load_classifier,
    load_model,
    original_weights,
    pick_device,
    settle_decoder_start,
)
from lorafit.recipe import Recipe
from lorafit.run import LABELS_FILE
from lorafit.train.classification import ClassificationLoss
from lorafit.train.loss import DocumentLoss, LabelLoss
from lorafit.train.rows import prepare_classes, prepare_pairs, prepare_rows
from lorafit.train.seq2seq import Seq2SeqLoss


class Rows(Protocol):
    """What every task's prepared rows have."""

    @property
    def train(self) -> Dataset: ...  # noqa: D102

    @property
    def held_out(self) -> Dataset: ...  # noqa: D102

    @property
    def summary(self) -> Summary | ClassSummary: ...  # noqa: D102


RowsT = TypeVar("RowsT", bound=Rows)


class Task(Protocol, Generic[RowsT]):
    """A task of the recipe."""

    def prepare(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> RowsT:
        """The rows to train on and to hold out."""
        ...

    def adapted_model(self, resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, rows: RowsT) -> PreTrainedModel:
        """The base model with a fresh adapter."""
        ...

    def loss(self, model: PreTrainedModel) -> DocumentLoss:
        """What training minimizes."""
        ...

    def beside_adapter(self, rows: RowsT) -> dict[str, str]:
        """What an adapter is saved with: texts by file name."""
        ...


class TextGeneration:
    """`task: sft`."""

    def prepare(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """Conversations and texts as tokens."""
        return prepare_rows(recipe, tokenizer)

    def adapted_model(self, resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, rows: Prepared) -> PreTrainedModel:
        """A causal language model; any other is a ModelError."""
        model = load_model(resolved, **recipe.model.loading)
        if model.config.is_encoder_decoder or not model.can_generate():
            other = "seq2seq" if model.config.is_encoder_decoder else "classification"
            raise ModelError(
                f"{resolved.reference} is a {type(model).__name__}; task sft trains causal language models only: "
                f"give one, such as demo:gemma-3-270m, or set task: {other}"
            )
        set_seed(recipe.train.seed)
        _attach(model, lora_config(recipe), resolved)
        return model

    def loss(self, model: PreTrainedModel) -> LabelLoss:
        """Cross entropy of each labelled token."""
        return LabelLoss(model)

    def beside_adapter(self, rows: Prepared) -> dict[str, str]:
        """The chat template."""
        return {"chat_template.jinja": rows.template.source}


class Classification:
    """`task: classification`."""

    def prepare(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreparedClasses:
        """Labelled texts as tokens."""
        return prepare_classes(recipe, tokenizer)

    def adapted_model(
        self, resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, rows: PreparedClasses
    ) -> PreTrainedModel:
        """A classifier whose head is drawn from the recipe's seed, and trained whole beside the adapter."""
        set_seed(recipe.train.seed)
        model, fresh = load_classifier(resolved, rows.labels, **recipe.model.loading)
        config = model.config.get_text_config()
        if config.pad_token_id is None:  # decoders find the last token of padded texts by it
            config.pad_token_id = tokenizer.pad_token_id
        set_seed(recipe.train.seed)
        asked = lora_config(recipe)
        saved: set[str] = {*(asked.modules_to_save or []), *fresh}
        _attach(model, replace(asked, modules_to_save=_outermost(saved) or None), resolved)
        return model

    def loss(self, model: PreTrainedModel) -> ClassificationLoss:
        """Cross entropy of each document's class."""
        return ClassificationLoss(model)

    def beside_adapter(self, rows: PreparedClasses) -> dict[str, str]:
        """The class names, as transformers' config.json has them."""
        names = {"id2label": dict(enumerate(rows.labels)), "label2id": {name: i for i, name in enumerate(rows.labels)}}
        return {LABELS_FILE: json.dumps(names, indent=2, ensure_ascii=False) + "\n"}


class Seq2Seq:
    """`task: seq2seq`."""

    def prepare(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreparedSeq2Seq:
        """Sources and targets as tokens."""
        return prepare_pairs(recipe, tokenizer)

    def adapted_model(
        self, resolved: ResolvedModel, recipe: Recipe, tokenizer: Any, rows: PreparedSeq2Seq
    ) -> PreTrainedModel:
        """An encoder-decoder; any other model is a ModelError."""
        model = load_model(resolved, seq2seq=True, **recipe.model.loading)
        settle_decoder_start(model, rows.template.target_start, rows.template.target_end)
        set_seed(recipe.train.seed)
        _attach(model, lora_config(recipe), resolved)
        return model

    def loss(self, model: PreTrainedModel) -> Seq2SeqLoss:
        """Cross entropy of each token of a target."""
        return Seq2SeqLoss(model)

    def beside_adapter(self, rows: PreparedSeq2Seq) -> dict[str, str]:
        """Nothing: prefix and languages stand in the recipe."""
        return {}


TASKS: dict[str, Task[Any]] = {"sft": TextGeneration(), "classification": Classification(), "seq2seq": Seq2Seq()}


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
