"""What the fuzzing reads: for each kind of file its reader, and hostile inputs for it, as bytes.

An input is accepted or refused with a LorafitError; any other exception, and one that takes seconds, is a defect.
"""

import io
import json
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st

NASTY = (
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff{{",
    "\ufeff",
    "\u202e",
    "\x1b[2J",
    "\r",
    "null",
    "NaN",
    "-1",
    "1e999",
    "0x10",
    "~",
    "~nobody/x",
    "/",
    "..",
    "../../x",
    "/etc/passwd",
    "C:\\x",
    "a" * 300,
    "x/" * 200,
    "{{ 1 }}",
    "{%",
    "(a+)+$",
    "(",
    "[",
    "(?i)x",
    "*",
    "\\",
    ".*" * 20,
    "all-linear",
    "q_proj",
    "model",
    "<s>",
    "</s>",
    "!!python/object:os.system",
    "&a",
    "*a",
    "a=b",
    "hf_" + "a" * 34,
)
RAW = (
    b"1" * 5000,
    b"[" * 3000,
    b"{" * 500,
    b'{"a":' * 2000,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0" * 16,
    b"\xff" * 8,
    b"1e400",
    b"\\ud800",
    b'"',
    b"\n",
    b"- " * 200,
    b"&a [*a]",
    b"!!int x",
    b"? a",
    b"<<: *x",
    b"\xf4\x90\x80\x80",
    b"---\n",
    b",",
    b"\r",
)
numbers = st.one_of(
    st.integers(-2, 3), st.sampled_from([2**31, 2**63, -(2**63), 10**12, 10**400, 0.5, 1e308, -0.0]), st.floats()
)
texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=8))
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)


def as_json(value: Any) -> bytes:
    """JSON as Python writes it, half characters and NaN included."""
    return json.dumps(value).encode()


def objects(keys: Sequence[str], special: dict[str, st.SearchStrategy], known: Any = values) -> st.SearchStrategy:
    """Objects with a few of the keys that the reader knows, and perhaps another."""
    entries = [st.tuples(st.just(key), special.get(key, known)) for key in keys]
    few = st.lists(st.one_of(entries), max_size=4).map(dict)
    return st.one_of(
        few, few, few, st.builds(lambda own, other: {**own, **other}, few, st.dictionaries(texts, values, max_size=1))
    )


def changed(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Valid files with bytes cut out, put in, overwritten or cut off."""
    place = st.integers(0, 1 << 16)
    some = st.one_of(st.binary(max_size=8), st.sampled_from(RAW))
    edits = st.lists(st.tuples(st.sampled_from("iodct"), place, some), min_size=1, max_size=4)
    return st.builds(_edited, st.sampled_from(list(seeds)), edits)


def variants(content: bytes, number: int) -> list[bytes]:
    """A content and `number` more that differ from it in a few bytes, always the same ones."""
    draw = random.Random(content)
    return [
        content,
        *(
            _edited(
                content,
                [
                    (draw.choice("iodct"), draw.randrange(1 << 16), draw.choice([*RAW, draw.randbytes(3)]))
                    for _ in range(draw.randint(1, 3))
                ],
            )
            for _ in range(number)
        ),
    ]


def _edited(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, new in edits:
        at = place % (len(content) + 1)
        if kind == "i":
            content = content[:at] + new + content[at:]
        elif kind == "o":
            content = content[:at] + new + content[at + len(new) :]
        elif kind == "d":
            content = content[:at] + content[at + len(new) + 1 :]
        elif kind == "c":
            content = content[:at]
        else:  # a piece again
            content = content[:at] + content[at : at + 40] + content[at:]
    return content


@dataclass(frozen=True)
class Target:
    """A reader of hostile files.

    Attributes:
        suffixes: of the files it reads.
        inputs: by suffix, contents to try.
        read: reads a file of that content and suffix; raises LorafitError where it is refused.
    """

    suffixes: tuple[str, ...]
    inputs: Callable[[str], st.SearchStrategy[bytes]]
    read: Callable[[bytes, str], Any]

    def contents(self) -> st.SearchStrategy[tuple[str, bytes]]:
        """Pairs of suffix and content."""
        return st.one_of(*(st.tuples(st.just(suffix), self.inputs(suffix)) for suffix in self.suffixes))


@cache
def folder() -> Path:
    """Where inputs are written, in memory where the system has such a place."""
    place = Path("/dev/shm")
    directory = tempfile.TemporaryDirectory(prefix="fuzz-", dir=place if place.is_dir() else None)
    folders.append(directory)  # lives as long as the process
    return Path(directory.name)


folders: list[Any] = []


# --- rows -------------------------------------------------------------------------------------------------------------

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


# --- recipes ----------------------------------------------------------------------------------------------------------


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


# --- adapters ---------------------------------------------------------------------------------------------------------


@cache
def _model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=12, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()


@cache
def adapter_seed() -> tuple[bytes, bytes]:
    """Config and tensors of a small adapter with a module saved whole."""
    from lorafit.lora import LoraConfig, attach, delete_adapter, save_adapter

    place = folder() / "seed"
    place.mkdir(exist_ok=True)
    attach(_model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"]))
    save_adapter(_model(), place)
    delete_adapter(_model(), "default")
    return (place / "adapter_config.json").read_bytes(), (place / "adapter_model.safetensors").read_bytes()


def _safetensors(header: Any, body: bytes, claimed: int | None) -> bytes:
    text = as_json(header)
    return struct.pack("<Q", len(text) if claimed is None else claimed % 2**64) + text + body


def adapter_files(suffix: str) -> st.SearchStrategy[bytes]:
    """safetensors files: right keys with wrong shapes, types and places, wrong keys, broken headers."""
    seed = adapter_seed()[1]
    length = int.from_bytes(seed[:8], "little")
    header, body = json.loads(seed[8 : 8 + length]), seed[8 + length :]
    keys = [key for key in header if key != "__metadata__"]
    sizes = st.one_of(st.lists(st.one_of(st.integers(0, 16), numbers), max_size=5), values)
    entries = objects(
        ["dtype", "shape", "data_offsets"],
        {
            "dtype": st.sampled_from(["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "U8", "F4", "C64"]),
            "shape": sizes,
            "data_offsets": st.lists(st.one_of(st.integers(0, len(body)), numbers), max_size=3),
        },
    )
    replaced = st.dictionaries(st.sampled_from([*keys, "base_model.model.model.norm.bias", "x"]), entries, max_size=2)
    shapes = st.dictionaries(st.sampled_from(keys), sizes, max_size=2)

    def made(new: dict[str, Any], shape: dict[str, Any], claimed: int | None, cut: int) -> bytes:
        merged = {**header, **new, **{key: {**header[key], "shape": value} for key, value in shape.items()}}
        return _safetensors(merged, body[: len(body) - cut], claimed)

    claims = st.one_of(st.none(), st.none(), st.integers(0, 2**64))
    return st.one_of(
        st.builds(made, replaced, shapes, claims, st.integers(0, 8)), changed([seed]), st.binary(max_size=60)
    )


def read_adapter(content: bytes, suffix: str) -> None:
    """Load an adapter's tensors, with a right config, and take it off again."""
    _load(adapter_seed()[0], content)


def config_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Configs of adapters: PEFT's and other keys with values of any kind."""
    seed = adapter_seed()[0]
    known = json.loads(seed)
    own = objects(
        [*known, "use_dora", "peft_version", "trainable_token_indices"],
        {
            "target_modules": st.one_of(texts, st.lists(texts, max_size=3)),
            "r": st.sampled_from([1, 2, 10**9]),
            "rank_pattern": st.dictionaries(texts, numbers, max_size=2),
            "layers_pattern": texts,
            "layers_to_transform": numbers,
        },
    )
    made = own.map(lambda new: as_json({**known, **new}))
    return st.one_of(made, made, own.map(as_json), values.map(as_json), changed([seed]), st.binary(max_size=60))


def read_adapter_config(content: bytes, suffix: str) -> None:
    """Load an adapter with this config and right tensors, and take it off again."""
    _load(content, adapter_seed()[1])


def _load(config: bytes, tensors: bytes) -> None:
    from lorafit.lora import delete_adapter, load_adapter

    place, model = folder() / "adapter", _model()
    place.mkdir(exist_ok=True)
    (place / "adapter_config.json").write_bytes(config)
    (place / "adapter_model.safetensors").write_bytes(tensors)
    load_adapter(model, place)
    delete_adapter(model, "default")


# --- GGUF, shard indices, templates -----------------------------------------------------------------------------------


def _gguf(
    pairs: list[tuple[str, int, bytes]], tensors: list[tuple[str, list[int], int, int]], counts: tuple[int, int]
) -> bytes:
    def text(value: str) -> bytes:
        raw = value.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(raw)) + raw

    out = b"GGUF" + struct.pack("<IQQ", 3, (len(tensors) + counts[0]) % 2**64, (len(pairs) + counts[1]) % 2**64)
    for key, kind, value in pairs:
        out += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        sizes = b"".join(struct.pack("<Q", size % 2**64) for size in shape)
        out += text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset % 2**64)
    return out + bytes(64)


def gguf_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Heads of GGUF files."""
    good = ("general.architecture", 8, struct.pack("<Q", 5) + b"llama")
    seed = _gguf(
        [
            good,
            ("llama.rope.scaling.factor", 6, struct.pack("<f", 1.0)),
            ("tokens", 9, struct.pack("<IQ", 8, 2) + (struct.pack("<Q", 1) + b"a") * 2),
        ],
        [("token_embd.weight", [2, 3], 0, 0)],
        (0, 0),
    )
    value = st.one_of(
        st.binary(max_size=24),
        st.sampled_from([struct.pack("<IQ", 9, 1) * 30, struct.pack("<IQ", 8, 2**60), b"\xff" * 16]),
    )
    pair = st.tuples(texts, st.integers(0, 13), value)
    tensor = st.tuples(texts, st.lists(st.integers(0, 2**64), max_size=6), st.integers(0, 40), st.integers(0, 2**64))
    extra = st.sampled_from([0, 0, 0, 1, 2**40, 2**63])
    made = st.builds(
        lambda some, more, *counts: _gguf([good, *some], more, counts),
        st.lists(pair, max_size=2),
        st.lists(tensor, max_size=2),
        extra,
        extra,
    )
    return st.one_of(made, changed([seed]), st.binary(max_size=60).map(lambda rest: b"GGUF" + rest))


def read_gguf(content: bytes, suffix: str) -> None:
    """Read the head of a GGUF file."""
    from lorafit.models.gguf_header import read_header

    file = folder() / f"model{suffix}"
    file.write_bytes(content)
    _ = read_header(file).scales_positions


def index_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Shard indices."""
    places = st.dictionaries(texts, st.one_of(texts, st.just("model-1.safetensors"), values), max_size=3)
    return st.one_of(
        st.one_of(places, values).map(lambda places: as_json({"weight_map": places})),
        values.map(as_json),
        st.binary(max_size=60),
    )


def read_index(content: bytes, suffix: str) -> None:
    """Read a shard index; every file it names lies beside it."""
    from lorafit.models.guard import shards

    file = folder() / "model.safetensors.index.json"
    file.write_bytes(content)
    for place in shards(file, "model").values():
        assert place.parent.resolve().is_relative_to(folder().resolve()) and ".." not in place.parts


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


TARGETS = {
    "data": Target((".jsonl", ".json", ".csv", ".txt", ".parquet"), row_files, read_rows),
    "recipe": Target((".yaml",), recipe_files, read_recipe),
    "adapter": Target((".safetensors",), adapter_files, read_adapter),
    "adapter_config": Target((".json",), config_files, read_adapter_config),
    "gguf": Target((".gguf",), gguf_files, read_gguf),
    "shard_index": Target((".json",), index_files, read_index),
    "template": Target((".jinja",), template_files, read_template),
}
