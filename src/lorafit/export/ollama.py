"""A GGUF file and the Modelfile that `ollama create` reads, with the chat template that was trained."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorafit.data import Template
from lorafit.errors import ModelError
from lorafit.export import TEXTS, Options, Written, gguf
from lorafit.export._go_template import turns_of
from lorafit.run import Run

OPTIONS = gguf.OPTIONS
TASKS = TEXTS
MODELFILE = "Modelfile"


def check(run: Run, options: Options) -> None:
    """Raise what stands in the way of a GGUF file or of the template in Go's syntax, before any work."""
    gguf.check(run, options)
    tokenizer, template = run.load_tokenizer()
    assert template is not None
    modelfile(run, tokenizer, template)


def write(run: Run, directory: Path, options: Options) -> Written:
    """Write both; the GGUF file is compared in llama.cpp, which Ollama runs, with the tuned model."""
    written, tuned = gguf.write_model(run, directory, options)
    assert tuned.template is not None
    (directory / MODELFILE).write_text(modelfile(run, tuned.tokenizer, tuned.template), encoding="utf-8", newline="\n")
    name = run.directory.resolve().name.lower()
    note = (
        f"Run it with: ollama create {shlex.quote(name)} -f {directory / MODELFILE} && ollama run {shlex.quote(name)}"
    )
    return replace(written, notes=[note])


def modelfile(run: Run, tokenizer: Any, template: Template) -> str:
    """The text of the Modelfile.

    Raises:
        ModelError: The template does what Go's syntax, or Ollama, has no way to say.
    """
    adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    text = turns_of(template, tokenizer.bos_token if adds_bos else "").go()
    if '"""' in text:
        raise ModelError('the chat template holds """, which a Modelfile cannot quote: take --to gguf')
    stops = [tokenizer.convert_ids_to_tokens(index) for index in template.stop_token_ids]
    base = run.find_base()
    lines = [f"# {run.directory.resolve().name}: {base.reference}, tuned by lorafit"]
    lines += [f"# {base.notice}"] if base.notice else []
    lines += [f"FROM ./{gguf.FILE}", f'TEMPLATE """{text}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"
