"""Rows scored as training computes them, beside transformers' own whole logits of each row alone."""

import importlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

import lorafit.evaluate.loss
from lorafit import LoraConfig, attach, disabled
from lorafit.cli.main import main
from lorafit.evaluate.loss import RowLosses, row_losses
from lorafit.evaluate.scores import LabelScores
from lorafit.train.batches import Document
from lorafit.train.fast import PLAIN, FastPath, choose_fast_path
from lorafit.train.loss import LabelLoss

WHOLE = FastPath(packed=True, attention=True, prefix=True, head=True, norms=True, update=True, dropout=True)
BUDGET = 60  # tokens: several rows a pack, several packs, and one row that is longer
UNTIED = {"tie_word_embeddings": False}
PREFIX = [5, 9, 11, 6, 20, 33, 8, 15, 4]  # longer than a sliding window of 7


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products only lose by more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def adapted(kind: str, *, config: LoraConfig | None = None, dtype=torch.float32, **settings) -> PreTrainedModel:
    model = tiny_model(kind, **settings).to(dtype)
    config = config or LoraConfig(r=4, target_modules="all-linear")
    torch.manual_seed(1)
    attach(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, dtype=parameter.dtype) * 0.1)  # as a trained one
    return model


@torch.no_grad()
def logits_of(model: PreTrainedModel, row: dict[str, list[int]]) -> torch.Tensor:
    was_training = model.training
    logits = model.eval()(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0].float()
    model.train(was_training)
    return logits


def rows_for(model: PreTrainedModel) -> list[dict[str, list[int]]]:
    """Rows of 10 to 70 tokens; a third of the labels are what the model would say, a third what its base would."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (30, 14, 70, 25, 12, 41, 33):
        drawn = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        ids = [*PREFIX, *drawn[len(PREFIX) :]]
        row = {"input_ids": ids, "labels": list(ids)}
        said = logits_of(model, row).argmax(-1).tolist()
        with disabled(model):
            base_said = logits_of(model, row).argmax(-1).tolist()
        for i in range(1, length):
            row["labels"][i] = (ids[i], said[i - 1], base_said[i - 1])[i % 3]
        row["labels"][: len(PREFIX)] = [-100] * len(PREFIX)
        row["labels"][-1 - length // 10 :] = [-100] * (1 + length // 10)
        rows.append(row)
    return [*rows, {"input_ids": ids, "labels": [-100] * len(ids)}]  # one without a label


def plain_scores(model: PreTrainedModel, rows: list[dict[str, list[int]]]) -> RowLosses:
    figures = []
    for row in rows:
        logits, targets = logits_of(model, row)[:-1].double(), torch.tensor(row["labels"][1:])
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        figures.append([float(losses), int((targets != -100).sum()), int((logits.argmax(-1) == targets).sum())])
    return RowLosses(*np.array(figures, dtype=float).T)


def check(model: PreTrainedModel, fast: FastPath, *, tolerance: float = 1e-5, miscounted: int = 0) -> None:
    """Base and tuned model through `fast` and through whole logits."""
    rows = rows_for(model)
    for state in (disabled(model), nullcontext()):
        with state:
            expected = plain_scores(model, rows)
            done: list[int] = []
            found = row_losses(model, rows, fast=fast, token_budget=BUDGET, on_rows=done.append)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=tolerance, atol=0)
        assert (found.tokens == expected.tokens).all()
        assert np.abs(found.correct - expected.correct).sum() <= miscounted
        assert 0.2 < expected.correct.sum() / expected.tokens.sum() < 0.8
        assert sum(done) == len(rows) and len(done) > 3


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma2", "gemma3", "cohere", "granite"])
def test_the_whole_fast_path_gives_the_plain_figures(kind):
    model = adapted(kind)
    rows = rows_for(model)
    documents = [Document.of(row) for row in rows[:2]]
    assert choose_fast_path(LabelLoss(model), documents) == WHOLE
    check(model.train(), WHOLE)
    assert model.training and model.config._attn_implementation != "lorafit_documents"


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_documents_that_cannot_be_packed_are_padded_and_the_head_is_blocks(kind):
    check(adapted(kind), FastPath(head=True, norms=True, update=True))


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
@pytest.mark.parametrize(
    "fast",
    [PLAIN, FastPath(packed=True), FastPath(packed=True, attention=True), FastPath(packed=True, head=True)],
    ids=["plain", "packed", "by document", "packed, head"],
)
def test_each_part_alone_gives_the_plain_figures(kind, fast):
    check(adapted(kind), fast)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "gemma3"])
def test_bfloat16_differs_by_its_rounding(kind):
    check(adapted(kind, dtype=torch.bfloat16), WHOLE, tolerance=0.02, miscounted=6)


@pytest.mark.filterwarnings("ignore:.*shares its weight")
@pytest.mark.parametrize(
    ("kind", "settings", "config", "head"),
    [
        ("qwen3", UNTIED, {"target_modules": ["q_proj", "lm_head"]}, False),
        ("qwen3", UNTIED, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ("gpt2", {}, {"target_modules": ["c_attn", "wte"]}, True),  # the head is the embedding without its adapter
        ("gpt2", {}, {"target_modules": ["c_attn"]}, True),
    ],
    ids=["adapted", "saved", "tied to an adapted embedding", "tied"],
)  # fmt: skip
def test_heads_that_are_adapted_saved_or_tied(kind, settings, config, head):
    model = adapted(kind, config=LoraConfig(r=4, **config), **settings)
    assert (LabelScores(model).head is not None) == head
    check(model, WHOLE)


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *made])
        return output


def largest_tensor(model: PreTrainedModel, **how: Any) -> int:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(3, VOCABULARY, (100,), generator=generator).tolist() for _ in range(3)]
    rows = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in drawn]
    with _Largest() as seen:
        row_losses(model, rows, **how)
    return seen.elements


@pytest.mark.parametrize("fast", [WHOLE, FastPath(head=True)], ids=["packed", "padded"])
def test_whole_logits_never_exist(fast):
    vocabulary = 2**15
    model = adapted("llama", vocab_size=vocabulary)
    assert largest_tensor(model, fast=fast) <= 2**20 < 99 * vocabulary  # a weight is as large


@pytest.mark.parametrize("fast", [PLAIN, FastPath(packed=True)], ids=["padded", "packed"])
def test_a_head_of_the_models_own_is_bounded(fast, monkeypatch):
    vocabulary = 2**15
    model = adapted("llama", vocab_size=vocabulary)
    monkeypatch.setattr(lorafit.evaluate.loss, "LOGITS_A_BATCH", 150 * vocabulary)
    assert largest_tensor(model, fast=fast) <= 100 * vocabulary  # one row at a time, not all of 300 tokens


def test_lorafit_eval_computes_as_the_run_was_trained(tiny_run: Path, tmp_path: Path, monkeypatch):
    seen: list[tuple[FastPath, int]] = []
    own = row_losses

    def spy(*args, fast, token_budget, **kwargs):
        seen.append((fast, token_budget))
        return own(*args, fast=fast, token_budget=token_budget, **kwargs)

    monkeypatch.setattr(importlib.import_module("lorafit.evaluate.compare"), "row_losses", spy)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert main(["eval", str(run), "--json"]) == 0
    before = json.loads((run / "eval.json").read_text())
    record = json.loads((run / "run.json").read_text())
    record["fast"] = PLAIN.to_dict()  # what `train.fast: off` leaves
    (run / "run.json").write_text(json.dumps(record))
    assert main(["eval", str(run), "--json"]) == 0
    assert seen == [(WHOLE, 1024)] * 2 + [(PLAIN, 1024)] * 2
    after = json.loads((run / "eval.json").read_text())
    assert after["loss"]["tuned"] == pytest.approx(before["loss"]["tuned"], rel=0.01)  # the model is bfloat16
