from importlib import import_module

import pytest

from lorafit.models import load_tokenizer, resolve
from lorafit.recipe import load_recipe
from lorafit.train.rows import prepare_rows


@pytest.fixture
def prepared(tiny_model_directory, tiny_rows):
    tokenizer = load_tokenizer(resolve(str(tiny_model_directory)))

    def make(*sets, **options):
        recipe = load_recipe(sets=sets, model=str(tiny_model_directory), data=str(tiny_rows))
        return prepare_rows(recipe, tokenizer, **options)

    return make


def test_the_seed_chooses_the_held_out_rows(prepared):
    first, again, other = (prepared(f"train.seed={seed}").held_out["input_ids"][:] for seed in (1, 1, 2))
    assert first == again != other


def test_settings_reach_the_rows(prepared):
    assert len(prepared("data.validation_share=0.5").held_out) == 24
    assert prepared("data.train_on=all").summary.to_dict() != prepared().summary.to_dict()


def test_other_files_are_held_out_whole(prepared, tiny_rows):
    assert len(prepared(files=[str(tiny_rows)]).held_out) == 48


def test_rows_are_kept_unless_the_recipe_says_no(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))
    monkeypatch.setattr(import_module("lorafit.data.prepare"), "WORTH_KEEPING", 0)
    first = prepared("data.cache=false")
    assert not list(tmp_path.iterdir())
    assert prepared().summary == first.summary
    assert len(list((tmp_path / "rows").iterdir())) == 1
