"""Which modules PEFT adapts when `target_modules` is None, by the `model_type` of the model's config."""

_QUERY_VALUE_PROJECTIONS = (
    "bart opt gptj gpt_neo llama llama4 mistral mixtral stablelm gemma gemma2 gemma3_text qwen2 qwen3"
)
_FUSED_QUERY_KEY_VALUE = "bloom gpt_neox chatglm RefinedWebModel RefinedWeb falcon"
_BERT_LIKE = "bert roberta xlm-roberta electra layoutlm"

DEFAULT_TARGETS: dict[str, list[str] | str] = {
    **{name: ["q_proj", "v_proj"] for name in _QUERY_VALUE_PROJECTIONS.split()},
    **{name: ["query_key_value"] for name in _FUSED_QUERY_KEY_VALUE.split()},
    **{name: ["query", "value"] for name in _BERT_LIKE.split()},
    "t5": ["q", "v"],
    "mt5": ["q", "v"],
    "gpt2": ["c_attn"],
    "gpt_bigcode": ["c_attn"],
    "btlm": ["c_proj", "c_attn"],
    "blip-2": ["q", "v", "q_proj", "v_proj"],
    "deberta": ["in_proj"],
    "deberta-v2": ["query_proj", "value_proj"],
    "mpt": ["Wqkv"],
    "codegen": ["qkv_proj"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "rwkv": ["key", "value", "receptance", "output"],
    "rwkv7": ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
}

# The freshly initialized heads that a task type trains whole, and their names in transformers' models.
TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
