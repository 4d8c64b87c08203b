"""The adapter in PEFT's format, which vLLM, TGI and SGLang read too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lorafit.export import TEXTS, Options, Written
from lorafit.run import LABELS_FILE, Run

OPTIONS = frozenset({"engine"})
TASKS = TEXTS


def check(run: Run, options: Options) -> None:
    """Raise what the engine would refuse, and what is missing to prove the adapter."""
    from lorafit.export._parity import transformers as judge

    if options.engine == "vllm":
        from lorafit.export import _vllm

        _vllm.check(run)
    if options.verify:
        judge.check_peft_installed()


def write(run: Run, directory: Path, options: Options) -> Written:
    """Write adapter, tokenizer and chat template, and compare the adapter in PEFT with the tuned model.

    Both are computed over the base model's original weights, also where training held them quantized.
    """
    from lorafit.export import _vllm
    from lorafit.export._parity import transformers as judge
    from lorafit.export._parity.compare import compare
    from lorafit.export._parity.questions import log_probabilities, what_is_said
    from lorafit.export._parity.tuned import load_tuned
    from lorafit.export._weights.whole import base_config, was_quantized
    from lorafit.lora.peft_format import CONFIG_FILE, WEIGHTS_FILE

    tuned = load_tuned(run, options.verify)
    shutil.copy(run.adapter / WEIGHTS_FILE, directory)
    config = json.loads((run.adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    base = run.find_base()
    config |= {"base_model_name_or_path": base.path, "revision": base.revision, "inference_mode": True}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if tuned.template is not None:
        tuned.tokenizer.chat_template = tuned.template.source
    tuned.tokenizer.save_pretrained(directory)
    if run.is_classifier:
        shutil.copy(run.adapter / LABELS_FILE, directory)
    notes = [
        f"Serve it with:\n  {_vllm.command(run, directory, config)}"
        if options.engine == "vllm"
        else f"Load it with: PeftModel.from_pretrained(model, {str(directory)!r}), over {base.path}"
    ]
    quantized = was_quantized(run)
    if tuned.reference is None:
        return Written("float32", None, quantized, notes=notes)
    judge.check_tokenizer(directory, tuned.reference.questions, tuned.template)
    found = log_probabilities(judge.load_with_adapter(directory, run, tuned.dtype), tuned.reference.questions)
    formats = [tuned.number_format]
    if "quantization_config" in base_config(run):  # bitsandbytes rounds what it multiplies with, lorafit does not
        formats.append("q8_0")
    said, base_said = tuned.reference.tuned, tuned.reference.base
    parity = compare(judge.runtime("peft"), found, said, base_said, formats, what_is_said(run))
    return Written("float32", parity, quantized, notes=notes)
