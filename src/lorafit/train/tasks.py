"""What differs between tasks on the way from a recipe to an adapter; everything else is the same code."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lorafit.data import Prepared, PreparedClasses, PreparedSeq2Seq, PreparedTags, RowFigures
from lorafit.errors import ConfigError, MissingExtraError, ModelError
from lorafit.lora import LoraConfig, attach
from lorafit.models import (
    TOKEN_CLASSIFICATION,
    HeadKind,
    ResolvedModel,
    context_of,
    load_classifier,
    load_model,
    load_tokenizer,
    original_weights,
    pick_device,
    settle_decoder_start,
)
from lorafit.recipe import PICTURES, Recipe
from lorafit.run import LABELS_FILE, TEMPLATE_FILE, Run
from lorafit.train.adapter_settings import lora_config
from lorafit.train.classification import ClassificationLoss
from lorafit.train.fast import FastPath, choose_fast_path
from lorafit.train.loss import DocumentLoss, LabelLoss
from lorafit.train.rows import check_lengths, class_weights, rows_to_train_on
from lorafit.train.saving import Saving
from lorafit.train.seq2seq import Seq2SeqLoss
from lorafit.train.token_classification import TagLoss

TRIED_ROWS = 2  # first rows, on which the fast path is tried


def ignore(line: str) -> None:
    """Where nobody is told."""


class Rows(Protocol):
    """What every task's prepared rows have."""

    @property
    def train(self) -> Any: ...  # noqa: D102

    @property
    def held_out(self) -> Any: ...  # noqa: D102

    @property
    def summary(self) -> RowFigures: ...  # noqa: D102


RowsT = TypeVar("RowsT", bound=Rows)


class Task(Protocol, Generic[RowsT]):
    """A task of the recipe.

    Attributes:
        pipeline: whether its base model is a pipeline of diffusers.
    """

    pipeline: ClassVar[bool]

    def settled(self, recipe: Recipe, resolved: ResolvedModel) -> Recipe:
        """The recipe with what the model settles: its longest row."""
        ...

    def reader(self, resolved: ResolvedModel, recipe: Recipe) -> Any:
        """What turns rows into what the model reads, without the model: a tokenizer."""
        ...

    def prepare(self, recipe: Recipe, tokenizer: Any) -> RowsT:
        """The rows to train on and to hold out."""
        ...

    def adapted_model(
        self,
        resolved: ResolvedModel,
        recipe: Recipe,
        tokenizer: Any,
        rows: RowsT,
        notice: Callable[[str], None] = ignore,
    ) -> Any:
        """The base model with a fresh adapter."""
        ...

    def check_lengths(self, resolved: ResolvedModel, recipe: Recipe, model: Any, rows: RowsT) -> None:
        """Refuse rows that the model cannot read whole."""
        ...

    def loss(self, model: Any, recipe: Recipe, rows: RowsT) -> DocumentLoss:
        """What training minimizes."""
        ...

    def fast_path(self, loss: Any, rows: RowsT, notice: Callable[[str], None]) -> FastPath:
        """The fast computations that are exact on the first rows."""
        ...

    def rates(self, recipe: Recipe) -> dict[str, float]:
        """Learning rates of parts of the model, by the start of their parameters' names."""
        ...

    def callbacks(self, run: Run, model: Any, recipe: Recipe, rows: RowsT, saving: Saving) -> list[Any]:
        """What it does around steps, beside what every task does."""
        ...

    def beside_adapter(self, rows: RowsT) -> dict[str, str]:
        """What an adapter is saved with: texts by file name."""
        ...


class TextTask:
    """What the tasks of texts share."""

    pipeline: ClassVar[bool] = False

    def settled(self, recipe: Recipe, resolved: ResolvedModel) -> Recipe:
        """The longest row is what the model reads."""
        return recipe.with_context(lambda: context_of(resolved, trust_remote_code=recipe.model.trust_remote_code))

    def reader(self, resolved: ResolvedModel, recipe: Recipe) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return load_tokenizer(resolved, trust_remote_code=recipe.model.trust_remote_code)

    def prepare(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Rows as tokens."""
        return rows_to_train_on(recipe, tokenizer)

    def check_lengths(self, resolved: ResolvedModel, recipe: Recipe, model: PreTrainedModel, rows: Any) -> None:
        """Refuse rows that are longer than the model's context."""
        check_lengths(resolved, recipe, model, rows)

    def fast_path(self, loss: Any, rows: Any, notice: Callable[[str], None]) -> FastPath:
        """What is exact on the first documents."""
        documents = [loss.document(rows.train[i]) for i in range(min(TRIED_ROWS, len(rows.train)))]
        return choose_fast_path(loss, documents, notice)

    def rates(self, recipe: Recipe) -> dict[str, float]:
        """None."""
        return {}

    def callbacks(self, run: Run, model: PreTrainedModel, recipe: Recipe, rows: Any, saving: Saving) -> list[Any]:
        """None."""
        return []


class TextGeneration(TextTask):
    """`task: sft`."""

    def adapted_model(
        self,
        resolved: ResolvedModel,
        recipe: Recipe,
        tokenizer: Any,
        rows: Prepared,
        notice: Callable[[str], None] = ignore,
    ) -> PreTrainedModel:
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


class Classification(TextTask):
    """`task: classification`."""

    def adapted_model(
        self,
        resolved: ResolvedModel,
        recipe: Recipe,
        tokenizer: Any,
        rows: PreparedClasses,
        notice: Callable[[str], None] = ignore,
    ) -> PreTrainedModel:
        """A classifier whose head is drawn from the recipe's seed, and trained whole beside the adapter."""
        return _with_fresh_head(resolved, recipe, tokenizer, rows.labels, rows.problem_type)

    def loss(self, model: PreTrainedModel, recipe: Recipe, rows: PreparedClasses) -> ClassificationLoss:
        """The loss of each document's label."""
        return ClassificationLoss(model, class_weights(recipe.train.class_weights, rows))

    def beside_adapter(self, rows: PreparedClasses) -> dict[str, str]:
        """The class names and what labels are, as transformers' config.json has them."""
        return {LABELS_FILE: _label_file(rows.labels, problem_type=rows.problem_type)}


class Seq2Seq(TextTask):
    """`task: seq2seq`."""

    def adapted_model(
        self,
        resolved: ResolvedModel,
        recipe: Recipe,
        tokenizer: Any,
        rows: PreparedSeq2Seq,
        notice: Callable[[str], None] = ignore,
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


class TokenClassification(TextTask):
    """`task: token_classification`."""

    def adapted_model(
        self,
        resolved: ResolvedModel,
        recipe: Recipe,
        tokenizer: Any,
        rows: PreparedTags,
        notice: Callable[[str], None] = ignore,
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


TEXT_TASKS: dict[str, Task[Any]] = {
    "sft": TextGeneration(),
    "classification": Classification(),
    "token_classification": TokenClassification(),
    "seq2seq": Seq2Seq(),
}


def task_of(recipe: Recipe) -> Task[Any]:
    """The recipe's task; pictures bring code that no other task needs."""
    if recipe.task != PICTURES:
        return TEXT_TASKS[recipe.task]
    from lorafit.diffusion.task import TextToImage

    return TextToImage()


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

    set_seed(recipe.train.seed)


def _attach(model: PreTrainedModel, config: LoraConfig, resolved: ResolvedModel) -> None:
    """Attach a fresh adapter; LoftQ's start reads the checkpoint again, as it was before quantization."""
    loftq = config.init_lora_weights == "loftq"
    attach(model, config, read_original=original_weights(resolved.path, resolved.revision) if loftq else None)


def _outermost(names: set[str]) -> list[str]:
    """Without the names that lie inside a head that the task's type saves whole anyway (`classifier.dense`)."""
    return sorted(name for name in names if name.partition(".")[0] not in ("classifier", "score"))
