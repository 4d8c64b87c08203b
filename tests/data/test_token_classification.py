import io
import json

import pytest
from rich.console import Console

from lorafit.data import prepare_token_classification, render_tags
from lorafit.errors import DataError


@pytest.fixture(params=["wordpiece", "bytes"])
def tokenizer(request):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if request.param == "wordpiece":  # BERT's way: words split at spaces, pieces of them behind ##
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
        core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:  # GPT-2's and RoBERTa's: the space before a word is its first byte
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters]
        core = Tokenizer(models.BPE({word: i for i, word in enumerate(vocabulary)}, [], unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")


NAMES = ["Ada", "Bo", "Cy"]


def rows(count=40):
    """Sentences of two names of persons and a place."""
    return [
        {"tokens": [NAMES[n % 3], "Li", "saw", f"R{n}."], "ner_tags": ["B-PER", "I-PER", "O", "B-LOC"]}
        for n in range(count)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


def test_each_word_is_answered_by_its_first_token(tmp_path, tokenizer):
    prepared = prepare_token_classification(write(tmp_path / "a.jsonl", rows()), tokenizer)
    assert prepared.labels == ("O", "B-LOC", "B-PER", "I-PER")
    assert (len(prepared.train), len(prepared.held_out)) == (32, 8)
    for row, kept, words in zip(prepared.held_out, prepared.held_out_rows, prepared.held_out_words, strict=True):
        assert row["input_ids"] == tokenizer(" ".join(kept.words))["input_ids"] and words == [0, 1, 2, 3]
        tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
        places = [place for place, label in enumerate(row["labels"]) if label != -100]
        assert [prepared.labels[row["labels"][place]] for place in places] == list(kept.tags)
        starts = [tokens[place].strip("Ġ") or tokens[place + 1] for place in places]  # a space may be a byte of its own
        assert starts == [word[0] for word in kept.words]
    summary = prepared.summary
    assert summary.words == 128 and summary.cut_rows == 0 and summary.entities == {"PER": 32, "LOC": 32}
    console = Console(width=80, file=io.StringIO())
    console.print(render_tags(summary))
    assert "tokens -> ner_tags" in console.file.getvalue() and "64: PER 32, LOC 32" in console.file.getvalue()


def test_a_conll_file_is_the_same_rows(tmp_path, tokenizer):
    expected = prepare_token_classification(write(tmp_path / "a.jsonl", rows()), tokenizer)
    text = "-DOCSTART- -X- O\n\n" + "\n\n".join(
        f"# sentence {n}\n" + "\n".join(f"{word} NN {tag}" for word, tag in zip(*row.values(), strict=True))
        for n, row in enumerate(rows())
    )
    for name, content in (("b.conll", text), ("c.txt", text.replace(" NN ", "\t").replace("# sentence ", "# "))):
        file = tmp_path / name
        file.write_text(content)
        found = prepare_token_classification([str(file)], tokenizer)
        assert found.train.to_list() == expected.train.to_list() and found.labels == expected.labels
        assert found.held_out_rows[0].where.startswith(f"{file}:")


def test_words_at_the_end_of_long_rows_are_cut_and_counted(tmp_path, tokenizer):
    long = [{"tokens": ["abc"] * 20, "tags": ["X", "Y"] * 10} for _ in range(20)]
    long[3]["tokens"] = ["ab"] * 20
    files, others = write(tmp_path / "a.jsonl", long), write(tmp_path / "b.jsonl", long[:9])
    prepared = prepare_token_classification(files, tokenizer, max_length=16, validation_files=others)
    assert max(map(len, prepared.train["input_ids"])) == 16 and prepared.summary.cut_rows == 29
    assert prepared.summary.cut_words > 29 * 12 and prepared.summary.entities == {}
    for labels, words in zip(prepared.held_out["labels"], prepared.held_out_words, strict=True):
        assert len(words) == sum(label != -100 for label in labels) < 8


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, r"a.jsonl:41: 2 words in 'tokens' and 1 tags in 'ner_tags'"),
        ({"tokens": ["a", " "], "ner_tags": ["O", "O"]}, r"a.jsonl:41: word 2 of 'tokens' is empty"),
        ({"tokens": "a b", "ner_tags": ["O", "O"]}, r"a.jsonl:41: 'tokens' is str, not a list of words"),
    ],
)
def test_a_row_that_is_no_sentence_is_an_error_with_its_place(tmp_path, tokenizer, row, complaint):
    with pytest.raises(DataError, match=complaint):
        prepare_token_classification(write(tmp_path / "a.jsonl", [*rows(), row]), tokenizer)


def test_what_is_wrong_with_files_is_said_at_once(tmp_path, tokenizer):
    one, two = tmp_path / "one.conll", tmp_path / "two.conll"
    one.write_text("Ada B-PER\nsaw\n\nBo B-PER extra\n")
    two.write_text("lonely\n")
    with pytest.raises(DataError) as error:
        prepare_token_classification([str(one), str(two), str(tmp_path / "none.jsonl")], tokenizer)
    message = str(error.value)
    assert f"{one}:2: a word and its tag are needed" in message and f"{one}:4: 3 columns" in message
    assert f"{two}:1: a word and its tag are needed" in message and "none.jsonl: no such file" in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lonely\nAda\tB-PER\n", r"a.conll:1: a word and its tag are needed in the first and the last column$"),
        ("Ada\tB-PER\nmet\t\n", r"a.conll:2: a word and its tag"),
        ("1\tAda\tB-PER\n2\tsaw\tO\n\n1\tBo\tB-PER\n", r"the first column only numbers the words"),
    ],
)
def test_columns_that_are_no_words_or_no_tags(tmp_path, tokenizer, text, complaint):
    (tmp_path / "a.conll").write_text(text)
    with pytest.raises(DataError, match=complaint):
        prepare_token_classification([str(tmp_path / "a.conll")], tokenizer)


def test_white_space_around_cells_is_not_theirs(tmp_path, tokenizer):
    file = tmp_path / "a.conll"
    file.write_text("\n\n".join(f"Ada{n} \tB-PER \nsaw\tO" for n in range(20)))
    prepared = prepare_token_classification([str(file)], tokenizer)
    assert prepared.labels == ("O", "B-PER") and prepared.summary.entities == {"PER": 12}


def test_rows_that_no_token_sees_are_left_out(tmp_path, tokenizer):
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")  # as BERT's drops control characters
    unseen = {"tokens": ["~"], "ner_tags": ["O"]}
    files = write(tmp_path / "a.jsonl", [*rows(), unseen, unseen])
    prepared = prepare_token_classification(files, tokenizer)
    assert [place.rpartition(":")[2] for place in prepared.summary.dropped["no word has a token"]] == ["41", "42"]
    assert (prepared.summary.rows, len(prepared.train) + len(prepared.held_out)) == (42, 40)
