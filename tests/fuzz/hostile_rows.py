"""Files of rows, recipes and chat templates, hostile, and their readers."""

import io
from functools import cache
from typing import Any

import hypothesis.strategies as st
from hostile_values import as_json, changed, folder, leaves, objects, texts, values

messages = st.lists(
    objects(
        ["role", "content", "from", "value", "tool_calls", "name", "weight", "function_call"],
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "from": st.sampled_from(["human", "gpt", "system", "function_call"]),
            "content": texts,
            "value": texts,
        },
        leaves,
    ),
    max_size=3,
)
ROW_KEYS = [
    "messages",
    "conversations",
    "tools",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "prompt",
    "completion",
    "text",
    "label",
    "premise",
    "hypothesis",
    "chosen",
    "rejected",
    "question",
    "answer",
]
ROW_SPECIAL = {
    "messages": messages,
    "conversations": messages,
    "tools": st.lists(values, max_size=2),
    "prompt": texts,
    "completion": texts,
    "instruction": texts,
    "output": texts,
    "text": texts,
    "label": leaves,
}
rows = objects(ROW_KEYS, ROW_SPECIAL, leaves)
GOOD_ROWS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    {"instruction": "a", "input": "b", "output": "c"},
    {"text": "some text", "label": 3},
]
SEEDS: dict[str, list[bytes]] = {
    ".jsonl": [b"".join(as_json(row) + b"\n" for row in GOOD_ROWS)],
    ".json": [as_json(GOOD_ROWS), as_json(GOOD_ROWS[0])],
    ".csv": [b'prompt,completion\n"a, b",c\nd,"e ""f"""\n', b"text,label\nx,1\ny,2\n"],
    ".txt": [b"a paragraph\nof two lines\n\nanother\n"],
}


def row_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Files of rows, nearly right or not at all."""
    if suffix == ".parquet":
        return st.one_of(changed(_parquet_seeds()), st.binary(max_size=40))
    if suffix == ".jsonl":
        made = st.lists(st.one_of(rows, values), max_size=4).map(lambda some: b"\n".join(map(as_json, some)))
    elif suffix == ".json":
        made = st.one_of(st.lists(rows, max_size=4), rows, values).map(as_json)
    else:
        made = st.lists(st.lists(texts, max_size=3), max_size=4).map(
            lambda cells: "\n".join(",".join(row) for row in cells).encode("utf-8", "surrogatepass")
        )
    return st.one_of(made, changed(SEEDS[suffix]), st.binary(max_size=60))


@cache
def _parquet_seeds() -> list[bytes]:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet

    seeds = []
    for columns in (
        {"prompt": ["a", "b"], "completion": ["c", None]},
        {"text": ["x"], "when": [datetime.datetime(2026, 1, 1)], "n": [1.5]},
    ):
        file = io.BytesIO()
        pyarrow.parquet.write_table(pa.table(columns), file)
        seeds.append(file.getvalue())
    return seeds


@cache
def tokenizer() -> Any:
    """Byte level, with a begin and an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core: Any = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@cache
def _template() -> Any:
    from lorafit.data import Template

    return Template(tokenizer())


def read_rows(content: bytes, suffix: str) -> None:
    """Read, recognize, render and tokenize, as for text and, some of what is no text for it, as for classes."""
    from lorafit.data.classification import prepare_classification
    from lorafit.data.formats import normalize
    from lorafit.data.prepare import prepare
    from lorafit.data.read import read
    from lorafit.data.rows import drop_reason
    from lorafit.errors import LorafitError

    file = folder() / f"rows{suffix}"
    file.write_bytes(content)
    records = read([str(file)])
    try:
        found = normalize(records).rows
        usable = [row for row in found if drop_reason(row) is None]
        _template().encode_batch(usable, 64)
        if usable and len(content) % 4 == 0:
            prepare([str(file)], tokenizer(), validation_files=[str(file)], max_length=64)
    except LorafitError:
        if len(content) % 4 == 0:
            prepare_classification([str(file)], tokenizer(), validation_files=[str(file)], max_length=32)
        raise


def recipe_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Recipes: known keys with values of any kind, and broken YAML."""
    from lorafit.recipe import commented_recipe, yaml_text
    from lorafit.recipe.aliases import ALIASES, NO_COUNTERPART, SAME_HERE
    from lorafit.recipe.explain import PATHS, SECTIONS

    sections = {
        section: st.one_of(
            values,
            st.dictionaries(
                st.sampled_from(
                    [path.partition(".")[2] for path in PATHS if path.startswith(f"{section}.")] + ["rank"]
                ),
                values,
                max_size=3,
            ),
        )
        for section in SECTIONS
    }
    flat = st.dictionaries(st.sampled_from([*ALIASES, *SAME_HERE, *NO_COUNTERPART, "task", "r"]), values, max_size=3)
    base = {"model": {"name": "m/n"}, "data": {"train_files": ["x.jsonl"]}}
    made = st.builds(lambda own, other: {**base, **own, **other}, st.fixed_dictionaries({}, optional=sections), flat)
    seeds = [
        commented_recipe().encode(),
        yaml_text.dump(base | {"lora": {"r": 8, "target_modules": ["a", "b"]}}).encode(),
    ]
    return st.one_of(made.map(as_json), changed(seeds), changed(seeds[1:]), st.binary(max_size=60))


def read_recipe(content: bytes, suffix: str) -> None:
    """Read a recipe, write it, read it again."""
    from lorafit.recipe import load_recipe

    file = folder() / f"recipe{suffix}"
    file.write_bytes(content)
    recipe = load_recipe(file)
    if len(content) % 4 == 0:
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        assert load_recipe(file) == recipe


PIECES = (
    "{{ messages }}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m.content }}",
    "{{ m['role'] }}",
    "{{ ''.__class__ }}",
    "{{ self }}",
    "{% set ns = namespace(a=1) %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}",
    "{{ f(1) }}",
    "{{ 1/0 }}",
    "{{ eos_token }}",
    "{% if add_generation_prompt %}",
    "{% endif %}",
    "{{ messages|tojson }}",
    "{{ raise_exception('no') }}",
    "{{ 'a' * 99 }}",
    "{{ strftime_now('%Y') }}",
    "{% include 'x' %}",
    "{% break %}",
    "{{ range(9)|list }}",
    "{{ x.y.z }}",
    "{{ messages[0]['content'] }}",
    "{{ messages[-1].content + eos_token }}",
    "{# c #}",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ '%s' % messages }}",
    "{{ loop.index }}",
    "{{ ['a']|join('x')|center(99) }}",
    "{{ cycler }}",
    "{{ lipsum() }}",
)


def template_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Chat templates of pieces that are right somewhere."""
    seed = b"{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    pieces = st.lists(st.one_of(st.sampled_from(PIECES), texts), max_size=6).map(
        lambda some: "".join(some).encode("utf-8", "surrogatepass")
    )
    return st.one_of(pieces, changed([seed]))


def read_template(content: bytes, suffix: str) -> None:
    """Study a chat template and render a row with it."""
    from lorafit.data import Template
    from lorafit.data.rows import Row

    file = folder() / f"template{suffix}"
    file.write_bytes(content)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    Template(tokenizer(), str(file)).encode_batch([Row("x:1", messages=said)], 64)
