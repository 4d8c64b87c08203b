from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafit.data import Row, Template
from lorafit.evaluate import Results, Sample, evaluate, sample_prompts
from lorafit.evaluate.generate import generate, text_of
from lorafit.evaluate.loss import row_losses
from lorafit.lora import LoraConfig, attach, disabled
from lorafit.metrics import Scores
from lorafit.recipe import EvaluateSettings
from lorafit.run import Run

TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]


@pytest.fixture
def tokenizer(tiny_model_directory: Path):
    return AutoTokenizer.from_pretrained(tiny_model_directory)


def chat(number: int, turns: int = 1) -> Row:
    question, answer = {"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "Answer."}
    return Row(f"rows.jsonl:{number}", messages=[*TURNS * (turns - 1), question, answer])


def test_prompts_are_spread_and_long_ones_give_way(tokenizer):
    template = Template(tokenizer)
    rows = [chat(0), chat(1, turns=9), chat(2), chat(3, turns=9), chat(4), chat(5)]
    texts = [prompt.text for prompt in sample_prompts(rows, tokenizer, template, 3, longest=None)]
    assert [text[-11:] for text in texts] == ["Question 0?", "Question 2?", "Question 4?"]
    fitting = sample_prompts([rows[1], rows[3], rows[5]], tokenizer, template, 3, longest=100)
    assert [prompt.text for prompt in fitting] == ["Question 5?"]
    assert fitting[0].token_ids == template.prompt_ids([{"role": "user", "content": "Question 5?"}])
    assert fitting[0].reference == "Answer."


def test_a_longer_conversation_shows_who_speaks(tokenizer):
    [prompt] = sample_prompts([chat(7, turns=2)], tokenizer, Template(tokenizer), 1, longest=None)
    assert prompt.text == "user: Hi.\nassistant: Yes?\nuser: Question 7?"


def test_plain_text_is_continued(tokenizer):
    text = "The stars were bright that night."
    [prompt] = sample_prompts([Row("a.txt:1", text=text)], tokenizer, Template(tokenizer), 5, longest=None)
    assert prompt.text + (prompt.reference or "") == text and len(prompt.text) == len(text) // 2


def test_evaluate_scores_both_models_and_leaves_the_adapter_on(tiny_model_directory: Path, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32)
    torch.manual_seed(0)
    attach(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    template = Template(tokenizer)
    rows = [chat(number) for number in range(6)]
    held_out = [vars(template.encode(row, 64)) for row in rows]
    before = row_losses(model, held_out).mean
    done: list[int] = []
    found = evaluate(
        model,
        tokenizer,
        template,
        held_out,
        rows,
        settings=EvaluateSettings(samples=2, max_new_tokens=5),
        on_rows=done.append,
    )
    assert sum(done) == 2 * (6 + 2)
    assert row_losses(model, held_out).mean == before
    loss = found.results.metrics["loss"]
    assert loss.tuned == pytest.approx(before)
    with disabled(model):
        assert loss.base == pytest.approx(row_losses(model, held_out).mean)
        prompt = template.prompt_ids(rows[0].prompt_messages)
        [answer] = generate(model, [prompt], stop_token_ids=template.stop_token_ids, max_new_tokens=5)
        assert found.samples[0].base == text_of(tokenizer, answer).strip()
    assert found.samples[0].tuned != found.samples[0].base
    assert found.comparison.tokens == sum(label != -100 for row in held_out for label in row["labels"])


def test_results_are_read_back(tmp_path: Path):
    samples = [Sample("früh", None, "a\nb", "c"), Sample("p", "r", "", "\u2028")]
    scores = {"loss": Scores.of_sums(np.array([2.0, 1.0]), np.array([1.0, 1.0]), np.array([1.0, 1.0]))}
    rows = [Row("1", text="one  row"), Row("2", text="another")]
    results = Results.of(scores, rows, EvaluateSettings(), 42)
    results.write(tmp_path, samples)
    run = Run(tmp_path)
    assert [Sample(**sample) for sample in run.samples] == samples
    assert run.results == {"loss": {"base": 1.5, "tuned": 1.0, "difference": -0.5, "interval": [-1.0, 0.0]}}
    assert run.scored_rows == {"rows_sha256": results.rows_sha256, "metrics": {"loss": scores["loss"].to_dict()}}
    other = Results.of(scores, [*rows[:1], Row("2", text="a third")], EvaluateSettings(), 42)
    assert other.rows_sha256 != results.rows_sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "eval_rows.json", "samples.jsonl"]
    nothing = Run(tmp_path / "nothing")
    assert (nothing.samples, nothing.results, nothing.scored_rows, nothing.updates) == ([], {}, {}, {})
