import peft
import pytest
import torch
from small_models import make

from lorafit.errors import ConfigError
from lorafit.lora import LoraConfig, attach, count_parameters, list_adapters
from lorafit.lora.targets import find_targets

REFUSED = [
    ({"target_modules": ["q_proj", "FAKE"]}, r"target_modules: 'FAKE' matches no module; this model has .*q_proj"),
    (
        {"target_modules": ["qproj", "v_proi"]},
        r"(?s)'qproj' matches no module; close: q_proj.*'v_proi'.*close: .*v_proj",
    ),
    ({"target_modules": r".*\.nothing"}, "matches no module"),
    ({"target_modules": ["mlp"]}, r"target 'model.layers.0.mlp' is a LlamaMLP, which LoRA cannot adapt"),
    ({"target_modules": ["q_proj"], "exclude_modules": ["k_prj"]}, "exclude_modules: 'k_prj' matches no module"),
    ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "every match is excluded"),
    ({"target_modules": ["q_proj"], "rank_pattern": {"v_prjo": 3}}, "rank_pattern: 'v_prjo' matches no module"),
    ({"target_modules": ["q_proj"], "alpha_pattern": {"v_prjo": 3}}, "alpha_pattern: 'v_prjo' matches no module"),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1, 7]}, r"layers_to_transform: \[7\] are no layers"),
    ({"target_modules": ["q_proj"], "modules_to_save": ["scroe"]}, "modules_to_save: 'scroe' matches no module"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_nothing_that_matches_nothing_passes(settings, message):
    model = make("llama")
    names = set(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        attach(model, LoraConfig(**settings))
    assert set(model.state_dict()) == names
    assert all(value.requires_grad for value in model.parameters())


def test_all_problems_come_in_one_error():
    with pytest.raises(ConfigError) as caught:
        attach(make("llama"), LoraConfig(target_modules=["FAKE"], modules_to_save=["hed"], rank_pattern={"zzz": 2}))
    assert all(word in str(caught.value) for word in ("FAKE", "hed", "zzz"))


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"target_modules": None}, 4),
        ({"target_modules": "all-linear"}, 14),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0}, 1),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}, 1),
        ({"target_modules": r".*(q|k)_proj"}, 4),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, 1),
        ({"target_modules": "all-linear", "exclude_modules": r".*mlp.*"}, 8),
    ],
)
def test_targets(settings, count):
    assert len(find_targets(make("llama"), LoraConfig(**settings))) == count


def test_all_linear_leaves_the_heads_alone():
    assert "lm_head" not in find_targets(make("llama"), LoraConfig(target_modules="all-linear"))
    named = find_targets(make("bert"), LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"))
    assert "classifier" not in named and "bert.pooler.dense" in named


def test_unknown_architecture_needs_targets():
    with pytest.raises(ConfigError, match="no default for 'SmallCNN'"):
        attach(make("cnn"), LoraConfig())


def test_attention_that_never_calls_its_projection_is_refused():
    model = torch.nn.MultiheadAttention(8, 2)
    with pytest.raises(ConfigError, match="NonDynamicallyQuantizableLinear, which LoRA cannot adapt"):
        attach(model, LoraConfig(target_modules=["out_proj"]))


def test_resolved_targets_select_the_same_modules():
    model = make("llama")
    attach(model, LoraConfig(target_modules="all-linear", exclude_modules=[r"model.layers.0.mlp.up_proj"]))
    resolved = list_adapters(model)["default"]
    fresh = make("llama")
    assert sorted(find_targets(fresh, resolved)) == sorted(
        name
        for name in find_targets(fresh, LoraConfig(target_modules="all-linear"))
        if name != "model.layers.0.mlp.up_proj"
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT itself
def test_modules_to_save_match_any_end_of_a_name_as_in_peft():
    model = make("llama")
    reference = peft.get_peft_model(make("llama"), peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"]))
    attach(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"]))
    assert count_parameters(model) == reference.get_nb_trainable_parameters()
    attach(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["model.norm"]), "one")
    assert list_adapters(model)["one"].modules_to_save == ["model.norm"]


def test_targets_whose_forward_would_be_bypassed_are_refused():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(1, 3, 8)
    config = LoraConfig(target_modules=["linear1"], init_lora_weights=False)
    with pytest.raises(ConfigError, match=r"linear1: .* past the adapter .*set_fastpath_enabled\(False\)"):
        attach(layer, config)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        base = layer(x)
        attach(layer, config)
        assert not torch.allclose(layer(x), base)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)

    model = make("cnn")
    model.head.forward = lambda x: x
    with pytest.raises(ConfigError, match="'head' has a forward set on the object itself"):
        attach(model, LoraConfig(target_modules=["head"]))
