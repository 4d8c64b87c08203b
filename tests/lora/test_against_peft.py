"""PEFT 0.21 as the oracle: same weights, same inputs, equal outputs, gradients, training and files."""

import copy

import peft
import pytest
import torch
from small_models import ARCHITECTURES, batch, loss, make, output

from lorafit.kernels.dropout import draw_masks
from lorafit.lora import LoraConfig, adapter_tensors, attach, load_adapter, print_trainable_parameters, save_adapter
from lorafit.lora.inject import TiedWeightsWarning
from lorafit.lora.plain import term_by_term

pytestmark = [
    pytest.mark.filterwarnings("ignore::lorafit.lora.inject.TiedWeightsWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # by PEFT itself
    pytest.mark.filterwarnings("ignore:Could not identify embedding:UserWarning"),
]
assert issubclass(TiedWeightsWarning, UserWarning)


def pair(name: str, **changes):
    """The same model twice: with lorafit's adapter and with PEFT's, holding equal, random matrices."""
    settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, **ARCHITECTURES[name][1], **changes}
    ours = make(name)
    reference = peft.get_peft_model(copy.deepcopy(ours), peft.LoraConfig(**settings))
    attach(ours, LoraConfig(**settings))
    theirs = peft_parameters(reference)
    tensors = adapter_tensors(ours)
    assert set(tensors) == set(theirs)
    with torch.no_grad():
        for key, value in tensors.items():
            value.copy_(theirs[key])
    return ours.eval(), reference.eval()


def peft_parameters(model) -> dict[str, torch.Tensor]:
    """PEFT's trainable parameters under the keys of its files."""
    parameters = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            parameters[name.replace(".default", "").replace(".modules_to_save", "")] = value
    return parameters


def close(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 1e-5) -> bool:
    floor = 1e-5  # a key's bias moves all scores of a query alike: its gradient is nothing but rounding, about 1e-11
    return (ours - theirs).norm().item() <= relative * max(theirs.norm().item(), floor)


CASES = [(name, {}) for name in ARCHITECTURES] + [
    ("llama", {"use_rslora": True}),
    ("llama", {"rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.up_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    ("llama", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}),
    ("llama", {"target_modules": r".*layers\.0\..*(q|down)_proj", "exclude_modules": None}),
    ("llama", {"target_modules": "all-linear", "exclude_modules": ["k_proj"]}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("bert", {"bias": "all"}),
    ("bert", {"bias": "lora_only"}),
    ("gpt2", {"bias": "lora_only"}),
]


@pytest.mark.parametrize(("name", "changes"), CASES, ids=lambda value: str(value))
def test_outputs_and_gradients_equal_peft(name, changes):
    ours, reference = pair(name, **changes)
    inputs = batch(name)
    assert close(output(ours, inputs), output(reference, inputs))
    loss(ours, inputs).backward()
    loss(reference, inputs).backward()
    theirs = peft_parameters(reference)
    for key, value in adapter_tensors(ours).items():
        assert value.grad is not None, key
        assert close(value.grad, theirs[key].grad), key
    frozen = [name for name, value in ours.named_parameters() if not value.requires_grad and value.grad is not None]
    assert not frozen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_equal_peft_after_20_steps(name):
    ours, reference = pair(name)
    losses = []
    for model in (ours, reference):
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        for step in range(20):
            optimizer.zero_grad()
            loss(model, batch(name, seed=step)).backward()
            optimizer.step()
        losses.append(loss(model, batch(name, seed=99)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != loss(pair(name)[0], batch(name, seed=99)).item()


class OurDropout(torch.nn.Module):
    """Drops by the mask that lorafit would draw next."""

    def forward(self, x):
        (mask,) = draw_masks([0.3])
        assert mask is not None
        return x * mask.draw(x) * mask.scale


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dropout_equals_pefts_with_the_same_masks(name):
    ours, reference = pair(name, lora_dropout=0.3)
    for module in reference.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.lora_dropout["default"] = OurDropout()
    for model in (ours, reference):
        model.train()
        torch.manual_seed(5)
        loss(model, batch(name)).backward()
    theirs = peft_parameters(reference)
    for key, value in adapter_tensors(ours).items():
        assert close(value.grad, theirs[key].grad), key
    assert not close(output(ours, batch(name)), output(ours.eval(), batch(name)), 1e-3)


def test_dropout_of_the_plain_forward_draws_what_peft_draws():
    ours, reference = pair("llama", lora_dropout=0.3)
    outputs = []
    for model in (ours, reference):
        model.train()
        torch.manual_seed(5)
        with term_by_term(ours):
            outputs.append(output(model, batch("llama")))
    assert close(*outputs)
    assert not close(outputs[0], output(ours.eval(), batch("llama")), 1e-3)


@pytest.mark.parametrize(("name", "changes"), CASES, ids=lambda value: str(value))
def test_peft_loads_our_file(name, changes, tmp_path):
    ours, _ = pair(name, **changes)
    save_adapter(ours, tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(name), str(tmp_path)).eval()
    assert close(output(loaded, batch(name)), output(ours, batch(name)))


@pytest.mark.parametrize(("name", "changes"), CASES, ids=lambda value: str(value))
def test_we_load_pefts_file(name, changes, tmp_path):
    _, reference = pair(name, **changes)
    reference.save_pretrained(tmp_path)
    loaded = make(name)
    load_adapter(loaded, tmp_path)
    assert close(output(loaded, batch(name)), output(reference, batch(name)))
    assert not any(value.requires_grad for value in loaded.parameters())


def test_prints_pefts_line(capsys):
    ours, reference = pair("gpt2")
    print_trainable_parameters(ours)
    reference.print_trainable_parameters()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[1]
    assert lines[0].startswith("trainable params: ")
