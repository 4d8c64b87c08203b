"""One file a finding, with the exact places; and whatever the bytes, a report."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from findings_of import found, write
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_level

from lorafit.data import prepare_classification
from lorafit.data.check import KINDS, ClassRows, Findings, TagRows, TextRows, check
from lorafit.data.check import ROWS as READ
from lorafit.data.conll import SUFFIXES
from lorafit.data.read import READERS
from lorafit.data.rows import Record
from lorafit.errors import DataError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINGS = (
    *("river", "mountain", "violin", "copper", "lantern", "harbour", "meadow", "glacier", "orchard", "compass"),
    *("thunder", "velvet", "saffron", "walrus", "bicycle", "pyramid", "quartz", "sonnet", "tundra", "umbrella"),
)
GOOD = [{"prompt": f"What is a {thing}?", "completion": f"A {thing} is {'x' * n} {thing[::-1]}."}
        for n, thing in enumerate(THINGS)]  # fmt: skip


def turns(*roles: str, said: str = "words") -> dict:
    return {"messages": [{"role": role, "content": f"{said} {i}"} for i, role in enumerate(roles)]}


def texts(rows, tmp_path, validation=None, tokenizer=None, **options):
    file = write(tmp_path / "a.jsonl", rows)
    others = [write(tmp_path / "v.jsonl", validation)] if validation else []
    return check([file], TextRows(Findings(), tokenizer, **options), validation_files=others)


def test_good_rows_have_no_finding(tmp_path):
    report = texts(GOOD, tmp_path, tokenizer=byte_level())
    assert (report.rows, report.usable, report.errors, report.warnings) == (20, 20, 0, 0)
    assert found(report) == {} and report.unchecked == []
    [without_model] = texts(GOOD, tmp_path).unchecked
    assert without_model.startswith("Without --model")


LONG = "the small brown otter swims across the cold lake to find a flat stone for its lunch before the evening comes"
ERRORS = {
    "json": ([b'{"prompt": "a", "completion": }'], [("a.jsonl:21", "not JSON: Expecting value (column 31)")]),
    "encoding": (
        [b'{"prompt": "caf\xe9", "completion": "b"}', b'{"prompt": "\\ud83d", "completion": "b"}'],
        [
            (
                "a.jsonl:21",
                "not UTF-8 (byte 0xe9 at column 16); convert the file, e.g. with iconv -f latin1 -t utf-8",
            ),
            ("a.jsonl:22", "half a character (a lone surrogate, such as \\ud83d)"),
        ],
    ),
    "row": ([b"[1, 2]"], [("a.jsonl:21", "is list, not an object with named columns")]),
    "format": (
        [{"foo": "a", "bar": "b"}, turns("user", "wizard")],
        [
            ("a.jsonl:21", "unknown format: it has the columns 'foo', 'bar'"),
            (
                "a.jsonl:22",
                "message 2: role 'wizard' is not one of system, developer, user, assistant, tool, function",
            ),
        ],
    ),
    "answer": (
        [{"prompt": "a", "completion": "  "}, turns("user")],
        [("a.jsonl:21", "empty answer"), ("a.jsonl:22", "no answer (no assistant message)")],
    ),
    "text": ([{"text": " \n"}], [("a.jsonl:21", "empty text")]),
    "untrained": (
        [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}],
        [("a.jsonl:21", "every answer has weight 0")],
    ),
}
WARNINGS = {
    "roles": (
        [turns("assistant"), turns("user", "user", "assistant"), turns("user", "system", "assistant", said="s")],
        [
            ("a.jsonl:21", "message 1 is assistant, after nothing (expected system or user)"),
            ("a.jsonl:22", "message 2 is user, after user (expected assistant)"),
            ("a.jsonl:23", "message 2 is system, after user (expected assistant)"),
        ],
    ),
    "unanswered": ([turns("user", "assistant", "user")], [("a.jsonl:21", "1 behind the last answer")]),
    "duplicate": (
        [GOOD[3], GOOD[3] | {"prompt": GOOD[3]["prompt"] + " "}],
        [("a.jsonl:21", "same as line 4"), ("a.jsonl:22", "same as line 4")],
    ),
    "near_duplicate": (
        [{"prompt": LONG, "completion": LONG[::-1]}, {"prompt": LONG + " now", "completion": LONG[::-1]}],
        [("a.jsonl:22", "90% like line 21")],
    ),
    "special_tokens": (
        [{"prompt": "say <|im_end|>", "completion": "no"}, {"text": "a <|endoftext|> b"}],
        [("a.jsonl:21", "<|im_end|> in message 1 (user)"), ("a.jsonl:22", "<|endoftext|> in the text")],
    ),
    "length": (
        [{"prompt": "Why?", "completion": "because " * 2000}],
        [("a.jsonl:21", "the answer has 16,000 characters, the median is 31")],
    ),
    "mixed_formats": (
        [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}],
        [("a.jsonl:21", "alpaca from here, 2 in all; 20 are completion")],
    ),
    "unused_columns": (
        [{"prompt": "a", "completion": "b", "score": 3}],
        [("a.jsonl:21", "'score', in 1 rows")],
    ),
}


@pytest.mark.parametrize("kind", [*ERRORS, *WARNINGS])
def test_each_finding_has_its_line(kind, tmp_path):
    rows, expected = (ERRORS | WARNINGS)[kind]
    report = texts([*GOOD, *rows], tmp_path)
    assert found(report)[kind] == expected
    assert (report.errors > 0) == (kind in ERRORS) == (KINDS[kind].severity == "error")
    broken = sum(isinstance(row, bytes) and b"ud83d" not in row for row in rows)
    assert report.rows == 20 + len(rows) - broken
    assert report.usable == 20 + (len(rows) if kind in WARNINGS else 0)
    assert all(finding["line"] == int(finding["where"].rpartition(":")[2]) for one in report.to_dict()["findings"]
               for finding in one["places"])  # fmt: skip


def test_everything_is_found_in_one_go(tmp_path):
    every = ERRORS | WARNINGS
    report = texts([*GOOD, *(row for rows, _ in every.values() for row in rows)], tmp_path)
    assert set(every) <= set(found(report))


def test_rows_across_training_and_validation(tmp_path):
    rows = [*GOOD, {"prompt": LONG, "completion": LONG[::-1]}]
    other = [GOOD[6], {"prompt": LONG + " now", "completion": LONG[::-1]}, {"prompt": "new", "completion": "row"}]
    assert found(texts(rows, tmp_path, other)) == {
        "leak": [("a.jsonl:7", f"same as {tmp_path}/v.jsonl:1")],
        "near_leak": [("a.jsonl:21", f"90% like {tmp_path}/v.jsonl:2")],
    }


def test_what_only_tokens_show(tmp_path):
    rows = [
        {"prompt": "p " * 40, "completion": "short"},
        {"prompt": "short", "completion": "a " * 60},
        {"text": "t " * 80},
        {"prompt": "say <s>", "completion": "no"},
    ]
    report = texts([*GOOD, *rows], tmp_path, tokenizer=byte_level(), max_length=64)
    encoded = TextRows(Findings(), byte_level(), max_length=10_000)
    lengths = [
        len(encoded.encoded(encoded.read(Record("a:1", row), encoded.findings.row("a:1"))).input_ids) for row in rows
    ]
    assert {kind: places for kind, places in found(report).items() if "cut" in kind or kind == "special_tokens"} == {
        "cut": [("a.jsonl:21", f"{lengths[0] - 64} of {lengths[0]} tokens")],
        "answer_cut": [("a.jsonl:22", found(report)["answer_cut"][0][1])],
        "text_cut": [("a.jsonl:23", f"{lengths[2] - 64} of {lengths[2]} tokens")],
        "special_tokens": [("a.jsonl:24", "<s> in message 1 (user)")],
    }
    assert found(report)["answer_cut"][0][1].endswith(f" of {lengths[1]} tokens")


def test_templates(tmp_path):
    endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    report = texts(GOOD, tmp_path, tokenizer=byte_level(), chat_template=endless)
    [(_, detail)] = found(report)["template"]
    assert detail == "The chat template ends answers with no special token: </s> is added to each row."
    twice = texts(GOOD, tmp_path, tokenizer=byte_level(), chat_template="{{ bos_token }}{{ bos_token }}" + CHATML)
    assert found(twice)["template"][0][1] == "The chat template begins with 2 times <s>: one of them is kept."
    picky = CHATML.replace(
        "{{ '<|im_start|>'",
        "{% if 'otter' in m.content %}{{ raise_exception('no otters') }}{% endif %}{{ '<|im_start|>'",
    )
    report = texts(
        [*GOOD, {"prompt": "an otter", "completion": "swims"}], tmp_path, tokenizer=byte_level(), chat_template=picky
    )
    assert found(report) == {"refused": [("a.jsonl:21", "the chat template refuses it: no otters")]}


def test_too_few_rows_to_hold_some_out(tmp_path):
    report = texts(GOOD[:15], tmp_path)
    assert found(report) == {"few": [("a.jsonl", "15 usable rows; training needs 16, 8 of them to hold out")]}
    assert found(texts(GOOD[:15], tmp_path, GOOD[15:])) == {}


def test_files_that_cannot_be_read_are_findings_beside_the_rows(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    good = write(tmp_path / "a.jsonl", GOOD)
    files = [str(tmp_path / "nowhere.jsonl"), str(tmp_path / "empty.jsonl"), good, str(tmp_path)]
    report = check(files, TextRows(Findings()))
    assert [place for place, _ in found(report)["file"]] == ["nowhere.jsonl", "empty.jsonl", tmp_path.name]
    assert report.usable == 20
    with pytest.raises(DataError, match="no training files"):
        check([], TextRows(Findings()))
    with pytest.raises(DataError, match="format 'chatty' is unknown"):
        TextRows(Findings(), format="chatty")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", json.dumps([*GOOD, {"foo": 1}], indent=1), "a.json row 21 (line 82)"),
        ("a.json", json.dumps(GOOD, indent=1)[:-2] + ',\n {"prompt": }]', "a.json:82"),
        ("a.csv", "prompt,completion\n" + "".join(f"q{i},a{i}\n" for i in range(20)) + "lonely\n", "a.csv:22"),
    ],
)
def test_places_in_other_files(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    report = check([str(tmp_path / name)], TextRows(Findings()))
    assert [place for kind in ("format", "json", "row") for place, _ in found(report).get(kind, [])] == [expected]
    assert report.usable == 20


def test_rows_of_parquet_files(tmp_path):
    pq.write_table(pa.Table.from_pylist([*GOOD, {"prompt": "a", "completion": ""}]), tmp_path / "a.parquet")
    report = check([str(tmp_path / "a.parquet")], TextRows(Findings()))
    assert found(report)["answer"] == [("a.parquet row 21", "empty answer")]
    [finding] = report.findings.kept["answer"]
    assert finding.to_dict() == {
        "where": f"{tmp_path}/a.parquet row 21", "file": f"{tmp_path}/a.parquet", "line": None, "row": 21,
        "detail": "empty answer",
    }  # fmt: skip


LABELLED = [{"text": f"{word} and {word[::-1]}", "label": ("land", "thing")[n % 2]} for n, word in enumerate(THINGS)]
CLASS_FINDINGS = {
    "text": ([{"text": " ", "label": "land"}], [("a.jsonl:21", "empty text")]),
    "label": (
        [{"text": "a", "label": None}, {"text": "b", "label": ["land"]}],
        [("a.jsonl:21", "no label"), ("a.jsonl:22", "'label' is ['land']; a class is a name or a whole number (a list of them where data.problem_type is multi_label_classification; amounts are regression)")],  # noqa: E501
    ),
    "format": ([{"text": 7, "label": "land"}],
               [("a.jsonl:21", "'text' is int, not text; name the text with data.text_column")]),
    "encoding": ([b'{"text": "\\ud83d", "label": "land"}'],
                 [("a.jsonl:21", "half a character (a lone surrogate, such as \\ud83d)")]),
    "label_once": ([{"text": "a whale", "label": "animal"}], [("a.jsonl:21", "'animal'")]),
    "contradiction": ([{"text": LABELLED[4]["text"], "label": "thing"}],
                      [("a.jsonl:21", "'thing', but 'land' at line 5")]),
    "duplicate": ([LABELLED[4]], [("a.jsonl:21", "same as line 5")]),
    "special_tokens": ([{"text": "see </s>", "label": "land"}], [("a.jsonl:21", "</s> in the text")]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASS_FINDINGS)
def test_each_finding_of_a_classification_has_its_line(kind, tmp_path):
    rows, expected = CLASS_FINDINGS[kind]
    report = check([write(tmp_path / "a.jsonl", [*LABELLED, *rows])], ClassRows(Findings()))
    assert found(report)[kind] == expected
    also = {"near_duplicate"} if kind == "contradiction" else set()
    assert set(found(report)) == {kind, *also}


def test_classes_across_files(tmp_path):
    training, other = write(tmp_path / "a.jsonl", LABELLED), tmp_path / "v.jsonl"
    write(other, [{"text": "new", "label": "animal"}, LABELLED[0]])
    report = check([training], ClassRows(Findings()), validation_files=[str(other)])
    assert found(report) == {
        "new_label": [("v.jsonl:1", "'animal'")],
        "leak": [("a.jsonl:1", f"same as {other}:2")],
    }
    one = write(tmp_path / "one.jsonl", [row | {"label": "land"} for row in LABELLED])
    assert found(check([one], ClassRows(Findings()))) == {
        "classes": [("one.jsonl:1", "every training row has the label 'land'")]
    }
    nameless = write(tmp_path / "n.jsonl", [*({"a": n, "b": n} for n in range(20)), b"nope"])
    report = found(check([nameless], ClassRows(Findings())))
    assert [place for place, _ in report["json"]] == ["n.jsonl:21"]
    assert report["columns"][0][1].startswith("no text column was found: the rows have 'a', 'b'")
    cut = ClassRows(Findings(), byte_level(), max_length=16)
    report = check([write(tmp_path / "a.jsonl", [*LABELLED, {"text": "w " * 40, "label": "land"}])], cut)
    assert [place for place, _ in found(report)["text_cut"]][-1] == "a.jsonl:21"


def test_what_labels_are_is_seen_in_all_rows_as_training_does(tmp_path):
    """The first 1,000 rows say whole numbers, which are classes; one fraction behind them makes all of them amounts."""
    numbers = [{"text": f"text {n} {n * 7919 % 1000}", "label": n % 7} for n in range(1000)]
    file = write(tmp_path / "a.jsonl", [*numbers, {"text": "one more text", "label": 0.5}])
    assert found(check([file], ClassRows(Findings()), near=False)) == {}
    assert prepare_classification([file], byte_level()).problem_type == "regression"
    words = [row | {"label": f"{row['label']}.5"} for row in numbers]  # amounts, and behind them as many names
    file = write(tmp_path / "b.jsonl", [*words, *({"text": f"name {n}", "label": "ab"[n % 2]} for n in range(1000))])
    assert found(check([file], ClassRows(Findings()), near=False)) == {}
    assert prepare_classification([file], byte_level()).problem_type == "single_label_classification"


KEYS = (
    *("messages", "conversations", "role", "from", "content", "value", "prompt", "completion", "text", "instruction"),
    *("output", "tools", "tool_calls", "function", "name", "arguments", "history", "weight", "label", "system", "type"),
    *("tokens", "tags", "source", "target", "translation", "en"),
)
ROWS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)
MESSAGES = st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool", "x"])},
                                                optional={"content": ROWS, "tool_calls": ROWS, "weight": ROWS}))},
    optional={"tools": ROWS},
)  # fmt: skip
TAGGED = st.fixed_dictionaries(
    {"tokens": st.lists(st.sampled_from(["Ada", "Li", "saw", " ", "\u200b"]) | ROWS, max_size=5),
     "tags": st.lists(st.sampled_from(["O", "B-PER", "I-PER", "E-LOC", "-", "B-"]) | ROWS, max_size=5)}
)  # fmt: skip
PAIRS = st.fixed_dictionaries({"source": ROWS | st.text(), "target": ROWS | st.text()})
TOKENIZER = byte_level()


@given(st.lists(ROWS | MESSAGES | TAGGED | PAIRS, max_size=6))
@settings(max_examples=150, deadline=None)
def test_any_json_gives_a_report(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    for kind in READ.values():
        report = check([str(file)], kind(Findings(), TOKENIZER, max_length=32))
        json.dumps(report.to_dict())
        assert report.usable <= report.rows <= len(rows)


@given(st.binary(max_size=80) | st.text(alphabet='{}[]":,\\nul\n\r1e9-. "', max_size=60).map(str.encode),
       st.sampled_from(sorted({*READERS, *SUFFIXES})))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_report(tmp_path_factory, content, suffix):
    file = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    file.write_bytes(content)
    for task in (TextRows(Findings()), TagRows(Findings())):
        report = check([str(file)], task)
        json.dumps(report.to_dict())
        assert report.rows or report.errors
