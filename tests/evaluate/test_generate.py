import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lorafit.evaluate.generate import Sampling, generate


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=96))


def gemma3() -> PreTrainedModel:
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    )


def sharpened(make) -> PreTrainedModel:
    """A random model with a spread of answers: larger weights, so that no two tokens are nearly equally likely."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else None
    return model


PROMPTS = [[5, 9, 2, 40], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [33, 21], [8] * 20]
STOPS = {3, 17, 60}


def by_hand(model: PreTrainedModel, prompt: list[int], length: int, stops: set[int]) -> list[int]:
    """Greedy without batch, padding or cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(length):
            token = int(model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("make", [gpt2, gemma3])
def test_batched_equals_one_by_one(make):
    model = sharpened(make)
    stops = {by_hand(model, prompt, 9, set())[at] for prompt, at in zip(PROMPTS, (8, 3, 5), strict=False)}
    expected = [by_hand(model, prompt, 24, stops) for prompt in PROMPTS]
    for batch_size in (1, 2, 16):
        found = generate(model, PROMPTS, stop_token_ids=stops, max_new_tokens=24, batch_size=batch_size)
        assert found == expected
    assert len({len(answer) for answer in expected}) > 2  # answers end at different places


@pytest.mark.parametrize("make", [gpt2, gemma3])
def test_beams_in_a_batch_are_those_of_each_prompt_alone(make):
    model, beams = sharpened(make), Sampling(num_beams=4)
    found = generate(model, PROMPTS, stop_token_ids=STOPS, max_new_tokens=12, sampling=beams)
    alone = [
        generate(model, [prompt], stop_token_ids=STOPS, max_new_tokens=12, sampling=beams)[0] for prompt in PROMPTS
    ]
    assert found == alone != generate(model, PROMPTS, stop_token_ids=STOPS, max_new_tokens=12)


def test_the_models_own_sampling_settings_do_not_touch_greedy_answers():
    model = sharpened(gpt2)
    expected = generate(model, PROMPTS, stop_token_ids=STOPS, max_new_tokens=8)
    assert model.generation_config is not None
    model.generation_config.update(do_sample=True, temperature=0.3, top_k=64, top_p=0.95)
    assert generate(model, PROMPTS, stop_token_ids=STOPS, max_new_tokens=8) == expected


def test_sampling_is_seeded_and_leaves_the_random_state():
    model = gpt2()
    sampling = Sampling(temperature=1.0, seed=1)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = generate(model, PROMPTS, stop_token_ids=STOPS, max_new_tokens=8, sampling=sampling)
    assert torch.equal(torch.get_rng_state(), before)
    assert generate(model, PROMPTS, stop_token_ids=STOPS, max_new_tokens=8, sampling=sampling) == first
    other = Sampling(temperature=1.0, seed=2)
    assert generate(model, PROMPTS, stop_token_ids=STOPS, max_new_tokens=8, sampling=other) != first


def test_sampling_follows_the_models_distribution():
    """4000 draws of one token against the softmax: neither top-k nor top-p cuts the tail."""
    model = sharpened(gpt2)
    with torch.no_grad():
        expected = model.eval()(input_ids=torch.tensor([[5, 9]])).logits[0, -1].div(2.0).softmax(-1)
    answers = generate(
        model,
        [[5, 9]] * 4000,
        stop_token_ids={60},
        max_new_tokens=1,
        sampling=Sampling(temperature=2.0),
        batch_size=4000,
    )
    drawn = torch.tensor([answer[0] if answer else 60 for answer in answers])
    found = torch.bincount(drawn, minlength=61) / 4000
    assert (found - expected).abs().sum() / 2 < 0.06  # total variation distance; about 0.04 by chance


def test_the_head_gets_no_view_of_all_hidden_states():
    """In bfloat16 torch multiplies such a view by a copy of the weight for every prompt."""
    model, seen = sharpened(gemma3), []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].is_contiguous()))
    generate(model, PROMPTS, stop_token_ids=STOPS, max_new_tokens=3)
    hook.remove()
    assert seen and all(seen) and not head._forward_pre_hooks
