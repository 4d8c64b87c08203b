"""A model card: what an adapter was made of, what it gained, how to load it, and under which licence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorafit.models import ResolvedModel
from lorafit.models.gguf_header import read_header
from lorafit.run import Run

CARD = "README.md"
SETTINGS = ("lora", "train")  # sections of the recipe that are shown, where they differ from the defaults


def base_name(base: ResolvedModel) -> str:
    """A base model's name for others: the hub's id, or that of a file or folder without where it lies here."""
    return base.reference if base.kind in ("hub", "demo") else Path(base.reference).expanduser().resolve().name


def licence_of(base: ResolvedModel) -> str | None:
    """The licence that a base model states: in its card or its GGUF file; None where it states none here."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    if base.kind == "demo":
        return "gemma" if "gemma" in base.reference else "apache-2.0"
    if base.kind == "gguf":
        return read_header(Path(base.reference).expanduser()).metadata.get("general.license")
    if base.kind == "hub":
        found = try_to_load_from_cache(base.path, CARD, revision=base.revision)
        file = Path(found) if isinstance(found, str) else None
    else:
        file = Path(base.path) / CARD
    if file is None or not file.is_file():
        return None
    licence = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict().get("license")
    return licence if isinstance(licence, str) else None


def card(run: Run, licence: str | None, repo: str | None) -> str:
    """The text of the model card."""
    from huggingface_hub import ModelCardData

    base, record = run.find_base(), run.record
    name = repo.rpartition("/")[2] if repo else run.directory.resolve().name
    data = ModelCardData(
        base_model=base.path if base.kind == "hub" else None,
        library_name="peft",
        license=licence,
        pipeline_tag="text-classification" if run.is_classifier else "text-generation",
        tags=["lora", "lorafit"],
    )
    lines = ["---", data.to_yaml(), "---", "", f"# {name}", ""]
    lines += [f"A LoRA adapter for `{base_name(base)}`, trained with lorafit {record['versions']['lorafit']}.", ""]
    lines += _results(run)
    lines += ["## Data", "", *_data(run, record["data"].get("summary", {})), ""]
    lines += ["## Settings", "", *_settings(run), ""]
    lines += ["## Use", "", "```python", *_use(run, base, repo or name), "```", ""]
    lines += ["## Licence", "", _licence_line(base, licence)]
    return "\n".join(lines) + "\n"


def _results(run: Run) -> list[str]:
    """Base against tuned, as a table; nothing for a run that was not evaluated."""
    if not run.results:
        return []
    rows = [
        "## Base against tuned",
        "",
        "On rows that were held out of training, with 95 % intervals of the difference.",
    ]
    rows += ["", "| metric | base | tuned | difference |", "|---|---|---|---|"]
    for name, figures in run.results.items():
        low, high = figures["interval"]
        base, tuned, difference = (f"{figures[key]:.4g}" for key in ("base", "tuned", "difference"))
        rows.append(f"| {name} | {base} | {tuned} | {difference} ({low:.4g} to {high:.4g}) |")
    return [*rows, ""]


def _data(run: Run, summary: dict[str, Any]) -> list[str]:
    """What it was trained on: counts, not the rows."""
    settings = run.recipe.data
    lines = [f"- files: {', '.join(Path(name).name for name in settings.train_files)}"]
    names = {"train_rows": "training rows", "held_out_rows": "held-out rows", "max_length": "tokens of a row, at most"}
    lines += [f"- {words}: {summary[key]:,}" for key, words in names.items() if key in summary]
    counts = summary.get("formats") or {}
    lines += [f"- formats: {', '.join(f'{name} ({count:,})' for name, count in counts.items())}"] if counts else []
    return lines


def _settings(run: Run) -> list[str]:
    from lorafit.recipe import Recipe

    recipe = run.recipe
    lines = [f"- rank {recipe.lora.r}, alpha {recipe.lora.lora_alpha:g}"]
    for section in SETTINGS:
        kind: Any = Recipe.model_fields[section].annotation
        usual = {key: field.get_default(call_default_factory=True) for key, field in kind.model_fields.items()}
        for key, value in getattr(recipe, section).model_dump().items():
            if key not in ("r", "lora_alpha") and value != usual[key]:
                lines.append(f"- {section}.{key}: {json.dumps(value, ensure_ascii=False)}")
    return lines


def _use(run: Run, base: ResolvedModel, adapter: str) -> list[str]:
    """The lines of Python that load it."""
    auto = "AutoModelForSequenceClassification" if run.is_classifier else "AutoModelForCausalLM"
    labels = f", num_labels={len(run.labels)}" if run.is_classifier else ""
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("{base_name(base)}"{labels})',
        f'model = PeftModel.from_pretrained(model, "{adapter}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{adapter}")',
    ]


def _licence_line(base: ResolvedModel, licence: str | None) -> str:
    if base.notice:
        return base.notice
    if licence is None:
        return f"The licence of the base model, {base_name(base)}, applies to it too."
    return f"The base model, {base_name(base)}, is under {licence}, which applies to what is made from it too."
