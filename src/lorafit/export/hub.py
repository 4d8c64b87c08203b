"""The adapter with a model card, uploaded to the Hugging Face hub."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorafit.errors import ConfigError, ModelError
from lorafit.export import TEXTS, Options, Written, peft
from lorafit.export._card import CARD, base_name, card, licence_of
from lorafit.lora.peft_format import CONFIG_FILE
from lorafit.run import Run

OPTIONS = frozenset({"repo", "public", "dry_run"})
TASKS = TEXTS


def check(run: Run, options: Options) -> None:
    """Raise ConfigError where it is not said whereto."""
    if not options.dry_run and options.repo is None:
        raise ConfigError("--to hub uploads: add --repo USER/NAME, or --dry-run to write the folder only")
    if options.dry_run and options.public:
        raise ConfigError("--dry-run uploads nothing, so --public says nothing: leave out one of them")
    peft.check(run, options)


def write(run: Run, directory: Path, options: Options) -> Written:
    """Write adapter and card, and compare the adapter in PEFT with the tuned model; the upload follows."""
    written = peft.write(run, directory, options)
    base = run.find_base()
    licence = licence_of(base)
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name(base)  # not where it lies on this machine
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (directory / CARD).write_text(card(run, licence, options.repo), encoding="utf-8", newline="\n")
    notes = ["Nothing was uploaded (--dry-run). Read the card before you do."] if options.dry_run else []
    if licence is None:
        notes.append("The base model's licence is not known here: add it to README.md before others see it.")
    return replace(written, notes=notes, publish=None if options.dry_run else lambda folder: upload(folder, options))


def upload(directory: Path, options: Options) -> str:
    """Upload a folder; returns a line that says where it is.

    Raises:
        ModelError: the hub refuses it, or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    assert options.repo is not None
    api = HfApi()
    refusals: Any = (*HfHubHTTPError.__bases__, HFValidationError)  # bases: OSError and what its HTTP library raises
    try:
        where = api.create_repo(options.repo, private=not options.public, exist_ok=True)
        api.upload_folder(folder_path=directory, repo_id=where.repo_id, commit_message="Adapter trained with lorafit")
    except refusals as error:
        raise ModelError(
            f"{directory} is written but was not uploaded to {options.repo}: {' '.join(str(error).split())}. "
            f"Log in with `hf auth login` and upload it with: hf upload {options.repo} {directory}"
        ) from error
    return f"Uploaded to {where} ({'public' if options.public else 'private'})."
