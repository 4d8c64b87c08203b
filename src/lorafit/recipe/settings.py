"""The settings, declared once.

A description gives the unit and the reason. It becomes the comment of `lorafit init` and the text of the JSON schema,
so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from lorafit.recipe import yaml_text
from lorafit.recipe.data_settings import LONGEST, SHORTEST, DataSettings
from lorafit.recipe.diffusion_settings import DiffusionSettings
from lorafit.recipe.evaluate_settings import EvaluateSettings
from lorafit.recipe.kinds import Place, Settings, one_word
from lorafit.recipe.lora_settings import LoraSettings
from lorafit.recipe.model_settings import ModelSettings
from lorafit.recipe.train_settings import TrainSettings
from lorafit.redact import secret_in

PICTURES = "text_to_image"
TASK_TYPES: dict[str, str | None] = {
    "sft": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "seq2seq": "SEQ_2_SEQ_LM",
    PICTURES: None,
}
"""PEFT's names of the tasks; it has none for pictures."""
SEVERAL = "multi_label_classification"
_TEXT = ("sft", "seq2seq")  # write answers
_LABELLED = ("classification", "token_classification")
_OF_ROWS = (*_TEXT, *_LABELLED)
_PAIRS = "source_column", "target_column", "source_prefix", "source_lang", "target_lang", "max_target_length"
_OF_TASKS: dict[str, tuple[str, ...]] = {
    "data.format": _TEXT,
    "data.train_on": ("sft",),
    "data.chat_template": ("sft",),
    "data.text_column": _LABELLED,
    "data.label_column": _LABELLED,
    "data.problem_type": ("classification",),
    "data.label_separator": ("classification",),
    "train.class_weights": ("classification",),
    "data.max_length": _OF_ROWS,
    "model.trust_remote_code": _OF_ROWS,
    "model.allow_pickle": _OF_ROWS,
    "evaluate.also": _OF_ROWS,
    "lora.modules_to_save": _OF_ROWS,
    **{f"data.{name}": ("seq2seq",) for name in _PAIRS},
    **{f"evaluate.{name}": _TEXT for name in ("metrics", "generated_rows", "max_new_tokens", "num_beams")},
    **{f"diffusion.{name}": (PICTURES,) for name in DiffusionSettings.model_fields},
}
"""Settings that only some tasks read."""


class Recipe(Settings):
    """Everything a run needs; `recipe.yaml` in its directory is this, resolved."""

    task: Annotated[
        Literal["sft", "classification", "token_classification", "seq2seq", "text_to_image"],
        BeforeValidator(one_word),
    ] = Field(
        default="sft",
        description="What to learn; sft is supervised fine-tuning on rows with answers, classification gives a text or "
        "a pair of texts a class, any number of classes, or an amount; token_classification gives each word a tag "
        "(named entities, parts of speech); seq2seq teaches an encoder-decoder (T5, BART) to write a target for a "
        "source; text_to_image teaches a diffusion model a style or a subject from a folder of pictures.",
    )
    output_dir: Place | None = Field(
        default=None, min_length=1, description="The run's directory; null makes a new one under runs/."
    )
    model: ModelSettings
    data: DataSettings
    lora: LoraSettings = Field(default_factory=LoraSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    diffusion: DiffusionSettings = Field(default_factory=DiffusionSettings)

    _notes: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="before")
    @classmethod
    def _attention_of_pictures(cls, values: Any) -> Any:
        """Diffusion models are adapted in their attention where nothing is said, as their users expect."""
        if not isinstance(values, dict) or one_word(values.get("task")) != PICTURES:
            return values
        lora = values.get("lora", {})
        if isinstance(lora, dict) and "target_modules" not in lora:
            values = {**values, "lora": {**lora, "target_modules": None}}
        return values

    @model_validator(mode="after")
    def _fits_the_task(self) -> Recipe:
        problems = []
        for path, tasks in _OF_TASKS.items():
            section, name = path.split(".")
            settings = getattr(self, section)
            value = getattr(settings, name)
            default = type(settings).model_fields[name].get_default(call_default_factory=True)
            if self.task not in tasks and value != default:
                problems.append(
                    f"{path} = {value!r} is for task {' or '.join(tasks)}, not for {self.task}: leave it out"
                )
        if self.lora.task_type not in (None, TASK_TYPES[self.task]):
            problems.append(f"lora.task_type is {TASK_TYPES[self.task]} for task {self.task}: leave it out")
        if self.task == PICTURES and self.lora.init_lora_weights == "loftq":
            problems.append("lora.init_lora_weights = 'loftq' is for language models: leave it out")
        if self.lora.init_lora_weights == "loftq" and self.model.quantize in ("none", "auto"):
            problems.append(
                "lora.init_lora_weights = 'loftq' starts from the error of quantization: set model.quantize nf4, or "
                "init_lora_weights true"
            )
        if self.data.label_separator is not None and self.data.problem_type not in ("auto", SEVERAL):
            problems.append(
                f"data.label_separator parts several classes, and data.problem_type is {self.data.problem_type}: leave "
                "one of them out"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Recipe:
        found = [
            f"{section}.{name} holds {kind}"
            for section in sections()
            for name, value in getattr(self, section)
            if (kind := secret_in(value))
        ]
        if found:
            raise ValueError(
                f"{'; '.join(found)}: a recipe is written to its run and shown in the report, so keep secrets in the "
                "environment (HF_TOKEN, WANDB_API_KEY), where the libraries that need them look"
            )
        return self

    @property
    def adapter_task_type(self) -> str | None:
        """PEFT's name of the task; None where it has none."""
        return TASK_TYPES[self.task]

    @property
    def recipe_notes(self) -> tuple[str, ...]:
        """What `load_recipe` translated from other trainers' names, one line each."""
        return self._notes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # holds lists

    def with_context(self, read: Callable[[], int | None]) -> Recipe:
        """The recipe with `data.max_length` settled by the model, where it is auto.

        Args:
            read: finds how many tokens the model reads, None for no limit; called only where it matters.
        """
        if self.data.max_length != "auto":
            return self
        longest = max(SHORTEST, min(LONGEST, read() or LONGEST))
        return self.model_copy(update={"data": self.data.model_copy(update={"max_length": longest})})

    def to_yaml(self) -> str:
        """The recipe as YAML, which `load_recipe` reads back to an equal one."""
        return yaml_text.dump(self.model_dump())


def sections() -> dict[str, type[Settings]]:
    """The recipe's sections in order: `{"model": ModelSettings, ...}`."""
    return {
        name: field.annotation
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    }
