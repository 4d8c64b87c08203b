"""Tagged words under `check`: one file a finding, with the exact places."""

import json

import pytest
from findings_of import found, write
from rich.console import Console
from tiny_tokenizers import Words, byte_level

from lorafit.data import prepare_token_classification
from lorafit.data.check import KINDS, Findings, TagRows, check, tokens_of_row, write_fine
from lorafit.data.check.show import render_tokens
from lorafit.errors import DataError

PLACES = (
    *("river", "mountain", "violin", "copper", "lantern", "harbour", "meadow", "glacier", "orchard", "compass"),
    *("thunder", "velvet", "saffron", "walrus", "bicycle", "pyramid", "quartz", "sonnet", "tundra", "umbrella"),
)
NAMES = ["Ada Li", "Bo Ek", "Cy Oh", "Di An"]


def row(name: str, rest: str) -> dict:
    words = [*name.split(), "saw", "a", *rest.split()]
    return {"tokens": words, "ner_tags": ["B-PER", "I-PER", *["O"] * (len(words) - 2)]}


GOOD = [row(NAMES[n % 4], f"{place} near {place[::-1]}") for n, place in enumerate(PLACES)]
EMPTY = {"tokens": ["nothing", "to", "see"], "ner_tags": ["O", "O", "O"]}


def checked(rows, tmp_path, validation=None, tokenizer=None, **options):
    others = [write(tmp_path / "v.jsonl", validation)] if validation else []
    file = write(tmp_path / "a.jsonl", rows)
    return check([file], TagRows(Findings(), tokenizer, **options), validation_files=others)


FINDINGS = {
    "tag_count": ([{"tokens": ["a", "b"], "ner_tags": ["O"]}],
                  [("a.jsonl:21", "2 words in 'tokens' and 1 tags in 'ner_tags'")]),
    "text": ([{"tokens": [], "ner_tags": []}, {"tokens": ["a", " "], "ner_tags": ["O", "O"]}],
             [("a.jsonl:21", "no words"), ("a.jsonl:22", "word 2 of 'tokens' is empty")]),
    "label": ([{"tokens": ["a", "b"], "ner_tags": ["O", None]}, {"tokens": ["a"], "ner_tags": [""]}],
              [("a.jsonl:21", "'ner_tags' is empty (null) at place 2; each word and tag is a text or a number"),
               ("a.jsonl:22", "tag 1 of 'ner_tags' is empty")]),
    "format": ([{"tokens": "a b", "ner_tags": ["O", "O"]}, {"tokens": [1.5], "ner_tags": ["O"]}],
               [("a.jsonl:21", "'tokens' is str, not a list of words or whole numbers"),
                ("a.jsonl:22", "'tokens' is 1.5 at place 1; each word and tag is a text or a number")]),
    "encoding": ([b'{"tokens": ["\\ud83d"], "ner_tags": ["O"]}'],
                 [("a.jsonl:21", "half a character (a lone surrogate, such as \\ud83d)")]),
    "json": ([b'{"tokens": }'], [("a.jsonl:21", "not JSON: Expecting value (column 12)")]),
    "label_once": ([{"tokens": ["Oslo", "or", "Oslo"], "ner_tags": ["B-LOC", "O", "B-LOC"]}],
                   [("a.jsonl:21", "'B-LOC'")]),
    "contradiction": ([GOOD[4] | {"ner_tags": ["B-PER", "I-PER", *["O"] * 4, "B-PER"]}],
                      [("a.jsonl:21", "other tags at line 5")]),
    "duplicate": ([GOOD[4]], [("a.jsonl:21", "same as line 5")]),
    "special_tokens": ([row("Di An", "</s> there")], [("a.jsonl:21", "</s> in the words")]),
    "no_entity": ([EMPTY, {"tokens": ["We", "met", "Ada", "Li", "again"], "ner_tags": ["O"] * 5}],
                  [("a.jsonl:22", "'Ada Li' is PER in 5 rows")]),
    "tag_order": ([{"tokens": ["then", "Bo", "Ek", "left"], "ner_tags": ["O", "I-PER", "I-PER", "O"]}],
                  [("a.jsonl:21", "word 2 goes on with an entity that none began")]),
    "unused_columns": ([row("Cy Oh", "what") | {"id": 7}], [("a.jsonl:21", "'id', in 1 rows")]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FINDINGS)
def test_each_finding_has_its_line(kind, tmp_path):
    rows, expected = FINDINGS[kind]
    report = checked([*GOOD, *rows], tmp_path)
    assert found(report)[kind] == expected
    also = {"near_duplicate"} if kind == "contradiction" else set()
    assert set(found(report)) == {kind, *also}
    errors = len(expected) if KINDS[kind].severity == "error" else 0
    assert report.usable == 20 + len(rows) - errors or kind == "json"


def test_good_rows_have_no_finding(tmp_path):
    report = checked(GOOD, tmp_path, tokenizer=byte_level())
    assert found(report) == {} and report.usable == 20 and report.unchecked == []


def test_what_training_says_is_what_check_says(tmp_path):
    odd = [*FINDINGS["no_entity"][0], *FINDINGS["tag_order"][0], *FINDINGS["label_once"][0]]
    file = write(tmp_path / "a.jsonl", [*GOOD, *odd, *GOOD])
    summary = prepare_token_classification([file], byte_level()).summary
    assert {kind: one["places"] for kind, one in summary.warned.items()} == {
        "no_entity": [f"{file}:22"], "tag_order": [f"{file}:23"], "label_once": [f"{file}:24"],
    }  # fmt: skip


def test_a_long_run_without_entities_was_not_tagged(tmp_path):
    words = [place[:n] for place in PLACES for n in range(3, 5)]
    plain = [{"tokens": ["see", word, word[::-1]], "ner_tags": ["O"] * 3} for word in words]
    mixed = [one for pair in zip(GOOD, plain[:20], strict=True) for one in pair]
    assert "no_entity" not in found(checked(mixed, tmp_path))
    report = checked([*mixed, *plain[20:40]], tmp_path)
    told = found(report)["no_entity"]
    assert [place for place, _ in told] == [f"a.jsonl:{line}" for line in range(40, 61)]  # row 40 had none already
    assert {detail for _, detail in told} == {"21 rows in a row have no entity; of the others 49% have none"}


def test_data_that_begins_no_entity_and_tags_that_mark_none(tmp_path):
    iob1 = [one | {"ner_tags": [tag.replace("B-", "I-") for tag in one["ner_tags"]]} for one in GOOD]
    assert found(checked(iob1, tmp_path)) == {}
    parts = [{"tokens": one["tokens"], "tags": ["NOUN", "NOUN", *["VERB"] * (len(one["tokens"]) - 2)]} for one in GOOD]
    assert found(checked([*parts, {"tokens": ["Ada", "Li"], "tags": ["VERB"] * 2}], tmp_path)) == {}


def test_tags_across_files(tmp_path):
    other = [GOOD[0], {"tokens": ["Oslo"], "ner_tags": ["B-LOC"]}]
    assert found(checked(GOOD, tmp_path, other)) == {
        "leak": [("a.jsonl:1", f"same as {tmp_path}/v.jsonl:1")],
        "new_label": [("v.jsonl:2", "'B-LOC'")],
    }
    alone = [one | {"ner_tags": ["O"] * len(one["tokens"])} for one in GOOD]
    assert found(checked(alone, tmp_path)) == {"classes": [("a.jsonl:1", "every training word has the tag 'O'")]}
    report = found(checked([{"a": n, "b": n} for n in range(20)], tmp_path))
    assert report["columns"][0][1].startswith("no column of words was found (tokens, words")


def test_what_only_tokens_show(tmp_path):
    long = row("Ada Li", "and " * 30)
    report = checked([*GOOD, long], tmp_path, tokenizer=byte_level(), max_length=60)
    [(_, detail)] = [one for one in found(report)["text_cut"] if one[0] == "a.jsonl:21"]
    whole = len(byte_level()(" ".join(long["tokens"]))["input_ids"])
    assert detail.startswith(f"{whole - 60} of {whole} tokens, with ") and detail.endswith(" of 34 words")
    with pytest.raises(DataError, match="does not tell where in a text its tokens lie"):
        TagRows(Findings(), Words())


CONLL = "\n\n".join("\n".join(map(" ".join, zip(*one.values(), strict=True))) for one in GOOD)


def test_conll_files_have_lines_and_become_rows(tmp_path):
    file = tmp_path / "a.conll"
    start = CONLL.count("\n") + 3
    file.write_bytes(CONLL.encode() + b"\n\nAda B-PER\nlonely\n\nBo B-PER\ncaf\xe9 O\n\nCy B-PER x\n")
    report = check([str(file)], TagRows(Findings()))
    assert found(report) == {
        "row": [
            (f"a.conll:{start + 1}", "a word and its tag are needed in the first and the last column"),
            (f"a.conll:{start + 6}", "3 columns; the lines before have 2"),
        ],
        "encoding": [(f"a.conll:{start + 4}", "not UTF-8 (byte 0xe9); convert the file")],
    }
    assert write_fine(report, tmp_path / "out.jsonl") == 20  # no sentence with a line left out of it
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == [{"tokens": one["tokens"], "tags": one["ner_tags"]} for one in GOOD]
    numbered = tmp_path / "n.conll"
    numbered.write_text("1 Ada B-PER\n2 saw O\n\n1 Bo B-PER\n")
    assert "only numbers the words" in found(check([str(numbered)], TagRows(Findings())))["file"][0][1]


def test_a_row_shows_the_tag_at_each_word_s_first_token(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL)
    shown = tokens_of_row([str(tmp_path / "a.conll")], "1", TagRows(Findings(), byte_level(), max_length=20))
    tagged = [(text.strip(), tag) for text, tag in zip(shown.texts, shown.tags or (), strict=True) if tag]
    assert [tag for _, tag in tagged][:4] == ["B-PER", "I-PER", "O", "O"] and tagged[0][0] == "A"
    assert "".join(shown.texts) + shown.lost == " ".join(GOOD[0]["tokens"])
    assert len(shown.texts) == 20 and shown.cut == {"text": len(byte_level()(shown.lost)["input_ids"])}
    assert shown.to_dict()["tokens"][0]["tag"] == "B-PER" and sum(shown.trained) == len(tagged)
    console = Console(width=80, color_system=None, record=True)
    console.print(render_tokens(shown))
    text = console.export_text().replace("\n", "")
    assert (
        f"{shown.texts[0]}/B-PER|{shown.texts[1]}|" in text and "trained (green, with /TAG)" in text and "»" not in text
    )
