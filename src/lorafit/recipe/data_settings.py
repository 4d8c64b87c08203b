"""The `data` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from lorafit.recipe.kinds import Places, Settings, one_or_list

LONGEST = 2048
"""Tokens of a row where `max_length` is auto and the model reads more: longer ones are rare, and cost memory."""
SHORTEST = 16
"""Tokens that the longest row must be allowed."""


class DataSettings(Settings):
    """The rows to learn from, and the rows held out to measure the gain."""

    train_files: Places = Field(
        min_length=1,
        description="Files (.jsonl .json .csv .txt .parquet) or a hub data set id; one, or a list. text_to_image: a "
        "folder of pictures, with captions in metadata.jsonl or in text files of their names.",
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
    max_length: Annotated[int, Field(ge=SHORTEST)] | Literal["auto"] = Field(
        default="auto",
        description="Longest row, in tokens; a longer one loses the start of its prompt (a text, words, or a source of "
        f"seq2seq their end), and is counted. auto is what the model reads, at most {LONGEST:,}.",
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

    @property
    def longest_row(self) -> int:
        """`max_length`; an auto that no model has settled is the longest one."""
        return LONGEST if self.max_length == "auto" else self.max_length

    @field_validator("chat_template")
    @classmethod
    def _is_jinja(cls, value: str | None) -> str | None:
        if value is not None and "{{" not in value and "{%" not in value:
            raise ValueError(
                "must be Jinja text or the path of an existing .jinja file; null keeps the tokenizer's own"
            )
        return value
