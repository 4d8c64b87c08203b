import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_classifiers import class_rows, tiny_classifier
from torch.nn import functional as F

from lorafit.data import ClassRow, ClassSummary, PreparedClasses
from lorafit.evaluate import evaluate_labelled
from lorafit.evaluate.classes import class_logits
from lorafit.evaluate.verdict import class_verdict
from lorafit.lora import LoraConfig, attach, disabled
from lorafit.metrics import Measured, Scores
from lorafit.recipe import EvaluateSettings


@pytest.mark.parametrize("kind", ["bert", "llama", "deberta-v2"])
def test_logits_are_those_of_each_row_alone(kind):
    model, rows = tiny_classifier(kind), class_rows(12)
    seen = []
    found = class_logits(model, rows, on_rows=seen.append)
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows])
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
    assert sum(seen) == 12


def prepared_rows(rows, problem_type, labels=("a", "b", "c")):
    summary = ClassSummary(
        rows=len(rows), train_rows=0, held_out_rows=len(rows), duplicates=0, leaked=0, unused_columns={}, tokens={},
        max_length=32, cut_rows=0, text_columns=["text"], label_column="label", problem_type=problem_type, classes={},
        held_out_classes={}, numbers={},
    )  # fmt: skip

    def label(values):
        if problem_type == "regression":
            return float(values[0])
        several = tuple(labels[i] for i, value in enumerate(values) if value)
        return several if problem_type == "multi_label_classification" else labels[values[0]]

    texts = [ClassRow("here", f"text {n}", "pair" if n == 0 else None, label(row["labels"]))
             for n, row in enumerate(rows)]  # fmt: skip
    held_out = Dataset.from_list(rows)
    return PreparedClasses(held_out.select([]), held_out, texts, labels, problem_type, summary)


def adapted(problem_type, width=3):
    model = tiny_classifier("bert", classes=width)
    model.config.problem_type = problem_type
    attach(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False, task_type="SEQ_CLS"))
    return model


def test_base_and_tuned_are_compared_beside_the_commonest_class():
    rows, model = class_rows(30), adapted("single_label_classification")
    prepared = prepared_rows(rows, "single_label_classification")
    found = evaluate_labelled(model, prepared, settings=EvaluateSettings())
    with disabled(model):
        base = class_logits(model, rows)
    truth = np.array([row["labels"][0] for row in rows])
    assert list(found.results.metrics) == ["accuracy", "macro_f1", "loss"]
    assert found.results.metrics["accuracy"].base == np.mean(base.argmax(1) == truth)
    expected = F.cross_entropy(torch.tensor(base), torch.tensor(truth))
    assert found.results.metrics["loss"].base == pytest.approx(float(expected))
    counts = np.bincount(truth)
    assert found.beside.base == counts.max() / 30 and found.trivial == f"always answering {'abc'[counts.argmax()]!r}"
    assert [sample.reference for sample in found.samples] == [row.label for row in prepared.held_out_rows]
    assert found.samples[0].prompt == "text 0\npair" and len(found.shown(3)) == 3 and found.shown(0) == []
    assert set(found.to_dict()["metrics"]) == {"accuracy", "macro_f1", "loss"}


def test_several_classes_and_amounts_have_their_own_figures():
    draw = np.random.default_rng(1)
    rows = [{**row, "labels": draw.integers(0, 2, 3).astype(float).tolist()} for row in class_rows(30)]
    found = evaluate_labelled(
        adapted("multi_label_classification"), prepared_rows(rows, "multi_label_classification"),
        settings=EvaluateSettings(),
    )  # fmt: skip
    assert list(found.results.metrics) == ["micro_f1", "macro_f1", "exact_match", "loss"]
    assert found.verdict.sentence.count("micro F1 on 30 held-out rows") == 1
    said = {sample.tuned for sample in found.samples} | {sample.reference for sample in found.samples}
    assert said <= {"(none)", *(", ".join(s) for s in ("a", "b", "c", "ab", "ac", "bc", "abc"))}
    rows = [{**row, "labels": [float(draw.normal(5, 2))]} for row in class_rows(30)]
    amounts = prepared_rows(rows, "regression", ("score",))
    found = evaluate_labelled(adapted("regression", 1), amounts, settings=EvaluateSettings())
    assert list(found.results.metrics) == ["r2", "pearson", "mean_absolute_error", "loss"]
    assert found.beside.base == pytest.approx(0) and found.trivial.startswith("always answering the mean, ")
    shown = [float(sample.reference) for sample in found.samples]
    assert shown == pytest.approx([row["labels"][0] for row in rows], abs=0.01)


def test_amounts_that_are_all_equal_are_judged_by_their_absolute_error():
    rows = [{**row, "labels": [5.0]} for row in class_rows(30)]
    amounts = prepared_rows(rows, "regression", ("score",))
    found = evaluate_labelled(adapted("regression", 1), amounts, settings=EvaluateSettings())
    assert list(found.results.metrics) == ["mean_absolute_error", "loss"] and found.beside.base == 0
    assert (
        "always answering 5, as all held-out rows do (so that R² is undefined), gives 0.000" in found.verdict.sentence
    )
    better, worse = Measured(4.0, 1.0, -3.0, (-3.5, -2.5)), Measured(1.0, 4.0, 3.0, (2.5, 3.5))
    for measured, kind in ((better, "improved"), (worse, "worse"), (Measured(4, 4, 0, (-1, 1)), "no difference")):
        beside = Measured(0.0, measured.tuned, measured.tuned, (0.5, 5.0))
        assert class_verdict("mean_absolute_error", measured, beside, "always 5", 30).kind == kind


def paired(base, tuned):
    return Scores.of_sums(base, tuned).measured()


def test_a_classifier_that_only_knows_the_commonest_class_has_not_improved():
    truth = np.array([0] * 60 + [1] * 40)
    majority = truth == 0
    chance = np.arange(100) % 2 == truth

    def judged(found, beside):
        return class_verdict("accuracy", found, beside, "always answering 'a'", 100)

    assert judged(paired(chance, np.arange(100) < 95), paired(majority, np.arange(100) < 95)).kind == "improved"
    found = judged(paired(chance, majority), paired(majority, majority))
    assert found.kind == "no difference" and "always answering 'a' gives 60.0 %" in found.sentence
    assert judged(*[paired(majority, chance & majority)] * 2).kind == "worse"
