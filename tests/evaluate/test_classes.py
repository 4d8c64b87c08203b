import numpy as np
import pytest
import torch
from tiny_classifiers import class_rows, tiny_classifier
from torch.nn import functional as F

from lorafit.data import ClassRow
from lorafit.evaluate import evaluate_classes
from lorafit.evaluate.classes import class_scores, macro_f1_scores
from lorafit.evaluate.verdict import class_verdict
from lorafit.lora import LoraConfig, attach, disabled
from lorafit.metrics import Scores
from lorafit.recipe import EvaluateSettings


@pytest.mark.parametrize("kind", ["bert", "llama", "deberta-v2"])
def test_scores_are_those_of_each_row_alone(kind):
    model, rows = tiny_classifier(kind), class_rows(12)
    seen = []
    scores = class_scores(model, rows, on_rows=seen.append)
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows])
    targets = torch.tensor([row["labels"][0] for row in rows])
    np.testing.assert_allclose(scores.loss, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-4)
    assert scores.predicted.tolist() == logits.argmax(1).tolist() and sum(seen) == 12


def by_hand(truth, predicted):
    """Macro F1 over the classes of `truth`, from its definition."""
    values = []
    for label in np.unique(truth):
        right = np.sum((truth == label) & (predicted == label))
        precision, recall = right / max(np.sum(predicted == label), 1), right / np.sum(truth == label)
        values.append(2 * precision * recall / max(precision + recall, 1e-12))
    return np.mean(values)


def test_macro_f1_is_its_definition_and_its_interval_covers_the_difference():
    draw = np.random.default_rng(0)
    truth, noise = draw.integers(0, 4, 300), draw.integers(0, 5, 300)
    tuned = np.where(draw.random(300) < 0.7, truth, noise)
    found = macro_f1_scores(truth, noise, tuned).measured()
    assert found.base == pytest.approx(by_hand(truth, noise)) and found.tuned == pytest.approx(by_hand(truth, tuned))
    assert found.interval[0] < found.difference < found.interval[1] and found.beyond_chance
    same = macro_f1_scores(truth, tuned, tuned).measured()
    assert same.interval == (0, 0)


def test_base_and_tuned_are_compared_beside_the_commonest_class():
    model, rows = tiny_classifier("bert"), class_rows(30)
    attach(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False, task_type="SEQ_CLS"))
    labels = ["a", "b", "c"]
    texts = [ClassRow("here", f"text {n}", "pair" if n == 0 else None, labels[row["labels"][0]])
             for n, row in enumerate(rows)]  # fmt: skip
    found = evaluate_classes(model, rows, texts, labels, settings=EvaluateSettings())
    with disabled(model):
        base = class_scores(model, rows)
    truth = np.array([row["labels"][0] for row in rows])
    assert found.results.metrics["accuracy"].base == np.mean(base.predicted == truth)
    assert found.results.metrics["loss"].base == pytest.approx(base.loss.mean())
    assert found.majority_share == np.bincount(truth).max() / 30
    assert [sample.reference for sample in found.samples] == [row.label for row in texts]
    assert found.samples[0].prompt == "text 0\npair" and len(found.shown(3)) == 3 and found.shown(0) == []
    assert set(found.to_dict()["metrics"]) == {"accuracy", "macro_f1", "loss"}


def paired(base, tuned):
    return Scores.of_sums(base, tuned).measured()


def test_a_classifier_that_only_knows_the_commonest_class_has_not_improved():
    truth = np.array([0] * 60 + [1] * 40)
    majority = truth == 0
    chance = np.arange(100) % 2 == truth
    good = paired(chance, np.arange(100) < 95), paired(majority, np.arange(100) < 95)
    assert class_verdict(*good, "a", 100).kind == "improved"
    lazy = paired(chance, majority), paired(majority, majority)
    found = class_verdict(*lazy, "a", 100)
    assert found.kind == "no difference" and "always answering 'a' is right on 60.0%" in found.sentence
    worse = paired(majority, chance & majority), paired(majority, chance & majority)
    assert class_verdict(*worse, "a", 100).kind == "worse"
