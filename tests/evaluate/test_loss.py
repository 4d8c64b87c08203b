import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from lorafit.errors import ModelError
from lorafit.evaluate import loss as loss_module
from lorafit.evaluate import scores as scores_module
from lorafit.evaluate.loss import check_finite, row_losses


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def gemma2() -> PreTrainedModel:  # caps its logits, slides its window
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=8,
            final_logit_softcapping=5.0,
        )
    )


def rows(lengths: list[int], seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows with two trained stretches each, as in a chat of two turns; the first row is trained throughout."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, length in enumerate(lengths):
        input_ids = torch.randint(1, 97, (length,), generator=generator).tolist()
        trained = {*range(length // 4, length // 2), *range(length - 2, length)} if number else set(range(length))
        made.append(
            {
                "input_ids": input_ids,
                "labels": [token if index in trained else -100 for index, token in enumerate(input_ids)],
            }
        )
    return made


LENGTHS = [11, 30, 5, 17, 30, 23, 9]


@pytest.mark.parametrize("make", [llama, gpt2, gemma2])
def test_equals_transformers_loss(make):
    torch.manual_seed(0)
    model = make().train()
    data = rows(LENGTHS)
    found = row_losses(model, data)
    assert model.training  # left as it was

    model.eval()
    for index, row in enumerate(data):
        input_ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            output = model(input_ids=input_ids, labels=labels)
        trained = labels[0, 1:] != -100
        assert found.tokens[index] == trained.sum()
        assert found.loss[index] == pytest.approx(float(output.loss) * int(trained.sum()), rel=1e-5)
        right = (output.logits[0, :-1].argmax(-1) == labels[0, 1:]) & trained
        assert found.correct[index] == right.sum()


def test_mean_is_the_loss_of_all_rows_as_one_batch():
    torch.manual_seed(0)
    model = gpt2()
    data = rows([16] * 5)
    batch = {name: torch.tensor([row[name] for row in data]) for name in ("input_ids", "labels")}
    with torch.no_grad():
        expected = float(model.eval()(**batch).loss)
    assert row_losses(model, data).mean == pytest.approx(expected, rel=1e-6)


def test_small_budgets_change_batches_and_not_figures(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model, data = llama(), rows(LENGTHS)
    expected = row_losses(model, data)
    monkeypatch.setattr(loss_module, "LOGITS_A_BATCH", 97 * 20)
    monkeypatch.setattr(scores_module, "LOGITS_A_CHUNK", 97 * 3)
    sizes: list[int] = []
    found = row_losses(model, data, token_budget=31, on_rows=sizes.append)
    assert sum(sizes) == len(data) and len(sizes) > 3
    torch.testing.assert_close(torch.tensor(found.loss), torch.tensor(expected.loss), rtol=1e-5, atol=1e-5)
    assert (found.correct == expected.correct).all()


def test_logits_only_where_labels_are(monkeypatch: pytest.MonkeyPatch):
    model, data = llama(), rows([9, 40])[1:]
    seen: list[int] = []
    lm_head = model.get_output_embeddings()
    assert lm_head is not None
    lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    row_losses(model, data)
    assert seen == [12]  # 10 tokens of the first stretch, 2 of the second, of 40


def test_rows_that_are_not_finite_are_named():
    model, found = llama(), np.zeros((9, 2))
    check_finite(found, model)
    found[2:, 1] = np.nan
    with pytest.raises(ModelError, match=r"on 7 of 9 rows: a:3, a:4, a:5, a:6, a:7 and 2 more. Mend or"):
        check_finite(found, model, [f"a:{line}" for line in range(1, 10)])
    with pytest.raises(ModelError, match=r"on 1 of 3 rows: row 2. Mend or .* torch.float32"):
        check_finite(np.array([1.0, np.inf, 0.0]), model)
