"""An export read by transformers, or PEFT, alone."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lorafit.data import Template
from lorafit.errors import MissingExtraError, ModelError
from lorafit.export._parity.questions import Question
from lorafit.quiet import quiet_transformers, without_load_report
from lorafit.run import Run


def runtime(package: str = "transformers") -> str:
    """A package with its version."""
    return f"{package} {importlib.metadata.version(package)}"


def load(path: str | Path, run: Run, dtype: torch.dtype, revision: str | None = None, labels: int | None = None) -> Any:
    """A model by transformers' own classes.

    Args:
        path: a directory or the id of a hub model that has been loaded before.
        run: says what kind of model it is.
        dtype: to compute in.
        revision: of a hub model.
        labels: number of classes, where the files do not say it.
    """
    auto = AutoModelForSequenceClassification if run.is_classifier else AutoModelForCausalLM
    options: dict[str, Any] = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    with quiet_transformers(), without_load_report():
        model = auto.from_pretrained(
            path,
            dtype=dtype,
            revision=revision or "main",
            local_files_only=True,
            trust_remote_code=run.recipe.model.trust_remote_code,
            **options,
        )
    return model.eval()


def load_with_adapter(adapter: Path, run: Run, dtype: torch.dtype) -> Any:
    """The base model with an adapter, by PEFT."""
    check_peft_installed()
    from peft import PeftModel

    base = run.find_base()
    labels = len(run.labels) if run.is_classifier else None
    model = load(base.path, run, dtype, base.revision, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its cautions (ties, old names): what it computes is compared next
        return PeftModel.from_pretrained(model, str(adapter)).eval()


def check_peft_installed() -> None:
    """Raise MissingExtraError without PEFT."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError(
            "the adapter is proven in PEFT, which is not installed: pip install 'lorafit[export]', or add --no-verify"
        )


def check_tokenizer(directory: Path, questions: list[Question], template: Template | None) -> None:
    """Raise ModelError where the tokenizer and chat template written put a prompt otherwise than in training."""
    if template is None:
        return
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    for question in questions:
        messages = [{"role": "user", "content": question.text}]
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if found != template.render(messages, generation_prompt=True):
            raise ModelError(f"the chat template that was written renders {question.text[:40]!r} differently: not kept")
