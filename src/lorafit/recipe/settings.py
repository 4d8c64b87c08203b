"""The settings, declared once.

A description gives the unit and the reason. It becomes the comment of `lorafit init` and the text of the JSON schema,
so that they cannot drift apart.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from lorafit.recipe import yaml_text
from lorafit.recipe.kinds import (
    Alpha,
    Dtype,
    Place,
    Places,
    Rank,
    Settings,
    check_pattern,
    one_or_list,
)
from lorafit.recipe.train_settings import TrainSettings


class ModelSettings(Settings):
    """The base model."""

    name: Place = Field(
        min_length=1,
        description="The base model: a hub id, a directory, a GGUF file, or demo:gemma-3-270m (in a package).",
    )
    revision: str | None = Field(
        default=None,
        description="Branch, tag or commit of a hub model; null is its main branch. Pin it to repeat a run later.",
    )
    dtype: Dtype = Field(
        default="auto",
        description="Type of the frozen weights: bf16, fp32 or fp16 (no loss scaling, small gradients vanish); auto is "
        "bf16 where the processor or GPU multiplies it fast, else fp32. The adapter and the optimizer are always fp32.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto",
        description="auto (a GPU where there is one), cpu, cuda or mps; CUDA_VISIBLE_DEVICES chooses the GPU.",
    )
    quantize: Literal["auto", "none", "nf4", "int8"] = Field(
        default="auto",
        description="How the frozen linear layers are held: none (in dtype), int8, or nf4 (4 bits, QLoRA: an eighth of "
        "fp32; products are made in dtype). auto is none where that fits into memory, else the least that does. int8 "
        "and nf4 need bitsandbytes: pip install 'lorafit[quant]'.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that the model's repository carries. Off: it is someone else's program.",
    )

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of `load_model`; an auto that no plan has settled quantizes nothing."""
        quantize = "none" if self.quantize == "auto" else self.quantize
        return {**self.model_dump(include={"dtype", "device", "trust_remote_code"}), "quantize": quantize}


class DataSettings(Settings):
    """The rows to learn from, and the rows held out to measure the gain."""

    train_files: Places = Field(
        min_length=1,
        description="Files (.jsonl .json .csv .txt .parquet) or a hub data set id; one, or a list.",
    )
    validation_files: Places = Field(
        default_factory=list, description="Files to measure on instead of a share of train_files."
    )
    validation_share: float = Field(
        default=0.05,
        gt=0,
        le=0.5,
        description="Share of the rows held out when validation_files is empty (at least 8 rows, at most 500; "
        "duplicates stay on one side).",
    )
    format: str | None = Field(
        default=None,
        description="Format of the rows (chat, sharegpt, alpaca, completion, text); null recognizes it by their keys. "
        "seq2seq: not text.",
    )
    text_column: Annotated[list[str], BeforeValidator(one_or_list)] = Field(
        default_factory=list,
        max_length=2,
        description="classification: the column of the text, or a list of the two of a pair; token_classification: the "
        "column of the words. Empty finds usual names (text, sentence, question, premise and hypothesis, tokens, ...).",
    )
    label_column: str | None = Field(
        default=None,
        description="classification: the column of the class; token_classification: that of the tags. null finds it by "
        "usual names (label, category, ner_tags, ...).",
    )
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = Field(
        default="auto",
        description="classification: what a label is: one class, any number of classes, or an amount. auto sees it "
        "from the labels: lists are several classes, numbers with fractions are amounts, all else is one class.",
    )
    label_separator: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="classification: what stands between the classes of a row where they are one text (such as |).",
    )
    source_column: str | None = Field(
        default=None,
        description="seq2seq: the column of what the encoder reads; null finds it by usual names (source, document, "
        "text, dialogue, ...). Of translations {en: ..., de: ...} it is the language, such as en.",
    )
    target_column: str | None = Field(
        default=None,
        description="seq2seq: the column of what the decoder writes (target, summary, ...), or its language.",
    )
    source_prefix: str = Field(
        default="",
        description='seq2seq: written before each source, such as "summarize: " or "translate English to German: ", '
        "as T5 was trained with.",
    )
    source_lang: str | None = Field(
        default=None,
        description="seq2seq: the sources' language, as a multilingual tokenizer (mBART, NLLB, M2M100) calls it: "
        "en_XX, eng_Latn, en.",
    )
    target_lang: str | None = Field(
        default=None, description="seq2seq: the targets' language, as a multilingual tokenizer calls it."
    )
    max_length: int = Field(
        default=2048,
        ge=16,
        description="Longest row, in tokens; a longer one loses the start of its prompt, and is counted. seq2seq: "
        "longest source; a longer one loses its end.",
    )
    max_target_length: Annotated[int, Field(ge=4)] | None = Field(
        default=None,
        description="seq2seq: longest target, in tokens; a longer one loses its end, and is counted. null: max_length.",
    )
    train_on: Literal["responses", "all"] = Field(
        default="responses",
        description="responses: the loss is on what the assistant says; all: on every token. Plain text is always all.",
    )
    chat_template: str | None = Field(
        default=None,
        description="Jinja text, or the path of a .jinja file, in place of the tokenizer's own template. It is saved "
        "with the adapter.",
    )
    cache: bool = Field(
        default=True,
        description="Keep tokenized rows in lorafit's cache folder (LORAFIT_CACHE moves it): they then start at "
        "once the next time. At most 4 GiB, readable by you alone; false leaves no copy of your rows there.",
    )

    @field_validator("chat_template")
    @classmethod
    def _is_jinja(cls, value: str | None) -> str | None:
        if value is not None and "{{" not in value and "{%" not in value:
            raise ValueError(
                "must be Jinja text or the path of an existing .jinja file; null keeps the tokenizer's own"
            )
        return value


class LoraSettings(Settings):
    """The adapter, in LoraConfig's names: h = W0 x + (lora_alpha / r) B A x."""

    r: Rank = Field(
        default=16,
        description="Rank of the update. More holds more; above 16 seldom matters as much as the learning rate.",
    )
    lora_alpha: Alpha = Field(
        default=32, description="The update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with use_rslora)."
    )
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped in training."
    )
    target_modules: str | list[str] | None = Field(
        default="all-linear",
        description="Which layers get an adapter: all-linear (every linear layer but the head), a list of name "
        "endings, a regular expression, or null for what PEFT takes for the architecture. Attention alone learns less.",
    )
    exclude_modules: str | list[str] | None = Field(
        default=None,
        description="Layers to leave out of target_modules: a list of name endings or a regular expression.",
    )
    bias: Literal["none", "all", "lora_only"] = Field(default="none", description="Which biases train too.")
    modules_to_save: list[str] | None = Field(
        default=None, description="Modules trained and saved whole beside the adapter (endings of their names)."
    )
    use_rslora: bool = Field(
        default=False, description="Scale by lora_alpha / sqrt(r), for high ranks (arXiv 2312.03732)."
    )
    rank_pattern: dict[str, Rank] = Field(
        default_factory=dict, description="Another r for some layers: {name ending or regular expression: r}."
    )
    alpha_pattern: dict[str, Alpha] = Field(
        default_factory=dict,
        description="Another lora_alpha for some layers: {name ending or regular expression: alpha}.",
    )
    layers_to_transform: int | list[int] | None = Field(
        default=None,
        description="Numbers of the blocks that get an adapter; null is all. Needs target_modules as a list.",
    )
    layers_pattern: str | list[str] | None = Field(
        default=None,
        description="Name of the list of blocks (layers, h, ...), where layers_to_transform cannot find it.",
    )
    init_lora_weights: bool | Literal["gaussian", "loftq"] = Field(
        default=True,
        description="true: A random (Kaiming uniform), B zero, so training starts at the base model; gaussian: A "
        "normal; loftq: B A starts at what model.quantize took from the weights (arXiv 2310.08659); false: both "
        "random, for tests.",
    )
    task_type: Literal["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM"] | None = Field(
        default=None,
        description="Written into adapter_config.json for the programs that load the adapter; null follows the task: "
        "CAUSAL_LM, SEQ_2_SEQ_LM, or SEQ_CLS and TOKEN_CLS, which train and save the classifier's head.",
    )

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _names_or_pattern(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == []:
            raise ValueError("must name at least one module; null is PEFT's choice for the architecture")
        if isinstance(value, str):
            check_pattern(value)
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, value: dict[str, Any]) -> dict[str, Any]:
        for pattern in value:
            check_pattern(pattern)
        return value

    @model_validator(mode="after")
    def _layers_fit(self) -> LoraSettings:
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError(
                "layers_pattern needs layers_to_transform: name the block numbers, or remove layers_pattern"
            )
        if self.layers_to_transform is not None and not isinstance(self.target_modules, list):
            raise ValueError("layers_to_transform needs target_modules as a list of names, such as [q_proj, v_proj]")
        return self


class EvaluateSettings(Settings):
    """The comparison of base and tuned model on the held-out rows, at the end."""

    samples: int = Field(
        default=3,
        ge=0,
        description="Held-out rows shown with both models' answers, and as many that got most better, and most worse.",
    )
    metrics: Annotated[list[str], BeforeValidator(one_or_list)] = Field(
        default_factory=list,
        description="Metrics of generated answers, the one that decides first: exact_match, json_fields, bleu, chrf, "
        "rouge (pip install 'lorafit[metrics]'; bleu:zh takes another of sacrebleu's tokenizers), or your own as "
        "file.py:function, called with an answer and the list of its references. Empty: the loss decides.",
    )
    generated_rows: Annotated[int, Field(ge=1)] | None = Field(
        default=64,
        description="Different held-out prompts that are answered for these metrics, spread evenly; null is all.",
    )
    num_beams: int = Field(
        default=1, ge=1, description="Beams of the answers' search; 1 is greedy, above it is slower and often better."
    )
    max_new_tokens: int = Field(default=128, ge=1, description="Longest answer, in tokens.")
    also: Places = Field(
        default_factory=list,
        description="Files with rows of other domains, measured beside the held-out ones (loss, perplexity and token "
        "accuracy, or the classifier's figures), so that a gain here and a loss there show together.",
    )
    bootstrap_samples: int = Field(
        default=1000, ge=100, description="Resamples of the rows for the 95 % interval of each difference."
    )

    def answers_at_most(self, rows: int) -> int:
        """How many of `rows` prompts each model answers, at most."""
        if not self.metrics:
            return min(3 * self.samples, rows)
        return rows if self.generated_rows is None else min(max(self.generated_rows, self.samples), rows)

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: list[str]) -> list[str]:
        if not value:
            return value
        from lorafit.metrics.answers import problem_of  # numpy, which reading a recipe does without

        if problems := [problem for problem in map(problem_of, value) if problem]:
            raise ValueError("; ".join(problems))
        return value


TASK_TYPES = {
    "sft": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "seq2seq": "SEQ_2_SEQ_LM",
}
"""PEFT's names of the tasks."""
SEVERAL = "multi_label_classification"
_LABELLED = ("classification", "token_classification")
_ANSWERING = ("sft", "seq2seq")
_OF_PAIRS = ("source_column", "target_column", "source_prefix", "source_lang", "target_lang", "max_target_length")
_OF_TASKS: dict[str, tuple[str, ...]] = {
    "data.format": _ANSWERING,
    **dict.fromkeys(("data.train_on", "data.chat_template"), ("sft",)),
    **dict.fromkeys(("data.text_column", "data.label_column"), _LABELLED),
    **dict.fromkeys(("data.problem_type", "data.label_separator", "train.class_weights"), ("classification",)),
    **dict.fromkeys((f"data.{name}" for name in _OF_PAIRS), ("seq2seq",)),
    **dict.fromkeys(
        ("evaluate.metrics", "evaluate.generated_rows", "evaluate.max_new_tokens", "evaluate.num_beams"), _ANSWERING
    ),
}
"""Settings that only some tasks read."""


class Recipe(Settings):
    """Everything a run needs; `recipe.yaml` in its directory is this, resolved."""

    task: Literal["sft", "classification", "token_classification", "seq2seq"] = Field(
        default="sft",
        description="What to learn; sft is supervised fine-tuning on rows with answers, classification gives a text or "
        "a pair of texts a class, any number of classes, or an amount; token_classification gives each word "
        "a tag (named entities, parts of speech); seq2seq teaches an encoder-decoder (T5, BART) to write a target for "
        "a source.",
    )
    output_dir: Place | None = Field(
        default=None, min_length=1, description="The run's directory; null makes a new one under runs/."
    )
    model: ModelSettings
    data: DataSettings
    lora: LoraSettings = Field(default_factory=LoraSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)

    _notes: tuple[str, ...] = PrivateAttr(default=())

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

    @property
    def adapter_task_type(self) -> str:
        """PEFT's name of the task."""
        return TASK_TYPES[self.task]

    @property
    def recipe_notes(self) -> tuple[str, ...]:
        """What `load_recipe` translated from other trainers' names, one line each."""
        return self._notes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # holds lists

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
