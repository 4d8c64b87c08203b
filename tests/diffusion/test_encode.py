"""Encoded pictures and captions: once, kept, whole or made again."""

import os
import time

import numpy as np
import pytest
import small_pipelines
import torch
from picture_runs import make_pictures, prepared, recipe_of
from PIL import Image

from lorafit.diffusion import encode as encoding
from lorafit.diffusion.batches import PictureCollator
from lorafit.diffusion.store import Store, key_of, pictures_directory
from lorafit.diffusion.task import encode


@pytest.fixture
def loads(monkeypatch):
    """Counts which components are loaded to encode."""
    loaded = []
    own = encoding.load_components

    def load(path, names, *args, **kwargs):
        loaded.extend(names)
        return own(path, names, *args, **kwargs)

    monkeypatch.setattr(encoding, "load_components", load)
    return loaded


def encoded(recipe, notices=None):
    rows = prepared(recipe)
    encode(recipe, rows.files, rows, (lambda line: None) if notices is None else notices.append)
    return rows


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_latents_are_the_vaes_as_the_denoiser_knows_them(family, base, pictures):
    rows = encoded(recipe_of(base(family), pictures, "diffusion.random_flip=true"))
    (document,) = rows.train[0]["documents"]
    pipeline = small_pipelines.make(family)
    with Image.open(rows.train.picture(0).picture.file) as image:
        pixels = pipeline.image_processor.preprocess(image.convert("RGB"))
    for side, view in enumerate((pixels, pixels.flip(-1))):
        found = pipeline.vae.encode(view).latent_dist
        config = pipeline.vae.config
        shift = config.shift_factor or 0.0
        torch.testing.assert_close(document.mean[side], (found.mean[0] - shift) * config.scaling_factor)
        torch.testing.assert_close(document.std[side], found.std[0] * config.scaling_factor)


def test_a_second_start_encodes_what_is_new_alone(base, tmp_path, monkeypatch, loads):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    folder = make_pictures(tmp_path / "p", 9)
    recipe, notices = recipe_of(base("sd1"), folder), []
    encoded(recipe, notices)
    assert loads == ["vae", "tokenizer", "text_encoder"] and notices[0] == "Encoding 9 pictures."
    loads.clear()
    notices.clear()
    encoded(recipe, notices)
    assert loads == [] and notices == []
    (folder / "new.png").write_bytes((folder / "00.png").read_bytes() + b"\0")
    (folder / "new.txt").write_text("a new patch")
    encoded(recipe, notices)
    assert notices == ["Encoding 1 pictures.", "Encoding 1 captions (text_encoder)."]
    assert pictures_directory().stat().st_mode & 0o777 == 0o700


def test_a_damaged_file_is_made_again(base, tmp_path, monkeypatch, loads):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    recipe = recipe_of(base("sd1"), make_pictures(tmp_path / "p", 9))
    # a copy: the file it is mapped from is cut below, and reading behind the cut kills the process
    before = encoded(recipe).train[0]["documents"][0].mean.clone()
    files = sorted((pictures_directory() / "latents").iterdir())
    content = bytearray(files[0].read_bytes())
    content[-5] ^= 1
    files[0].write_bytes(content)
    files[1].write_bytes(files[1].read_bytes()[:100])
    loads.clear()
    notices = []
    again = encoded(recipe, notices).train[0]["documents"][0].mean
    assert loads == ["vae"] and torch.equal(before, again)
    told = sorted(line.partition(" is damaged")[0] for line in notices[:2])
    assert told == [str(file) for file in files[:2]] and notices[2] == "Encoding 2 pictures."


def test_without_a_cache_nothing_is_written(base, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    rows = encoded(recipe_of(base("sd1"), make_pictures(tmp_path / "p", 9), "data.cache=false"))
    assert rows.train[0]["documents"][0].mean.shape == (1, 4, 16, 16)
    assert not (tmp_path / "cache").exists()


def test_a_trained_encoder_keeps_tokens(base, pictures):
    rows = encoded(recipe_of(base("sd3"), pictures, "diffusion.text_encoder_learning_rate=1e-4"))
    texts = rows.train[0]["documents"][0].texts
    assert set(texts) == {"text_encoder.ids", "text_encoder_2.ids", "text_encoder_3.hidden"}
    assert texts["text_encoder.ids"].shape == (77,)


def test_held_out_pictures_are_measured_at_fixed_levels(base, pictures):
    rows = encoded(recipe_of(base("sd1"), pictures, "diffusion.validation_timesteps=4"))
    row = rows.held_out[0]
    assert row["trained"] == 4 and [one.draw.share for one in row["documents"]] == [
        0.125,
        0.375,
        0.625,
        0.875,
    ]
    assert len({document.draw.seed for document in row["documents"]}) == 4


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    store = Store(tmp_path)
    for name in ("old", "new", "today"):
        store.put(key_of("texts", name), {"x": torch.zeros(1000)})
    for name, days in (("old", 9), ("new", 3)):
        file = store._file(key_of("texts", name))
        os.utime(file, (time.time() - days * 86400,) * 2)
    monkeypatch.setattr("lorafit.diffusion.store.LIMIT", 2 * 4300)
    store.prune()
    assert [store.has(key_of("texts", name)) for name in ("old", "new", "today")] == [False, True, True]
    monkeypatch.setattr("lorafit.diffusion.store.LIMIT", 0)
    store.prune()
    assert store.has(key_of("texts", "today")), "what a run uses now stays"


def test_a_disk_that_is_full_leaves_it_in_memory(tmp_path, monkeypatch):
    notices = []

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorafit.diffusion.store.save_tensors", full)
    store = Store(tmp_path, notices.append)
    store.put("texts/a", {"x": torch.ones(2)})
    assert store.has("texts/a") and torch.equal(store.get("texts/a")["x"], torch.ones(2))
    assert "No space left" in notices[0]


def test_the_batch_does_not_depend_on_order_of_sizes(base, tmp_path):
    wide = make_pictures(tmp_path / "wide", 9, sizes=((48, 32), (32, 32)))
    rows = encoded(recipe_of(base("sd1"), wide))
    step = PictureCollator(token_budget=512, rows=8)([rows.train[i] for i in range(8)])
    shapes = [tuple(batch.mean.shape[-2:]) for batch in step["micro_batches"]]
    assert len(set(shapes)) == 2 and all(batch.size <= 512 for batch in step["micro_batches"])
    assert step["tokens"] == step["trained"] == 8 == sum(len(batch.mean) for batch in step["micro_batches"])
    assert np.prod(shapes[0]) >= np.prod(shapes[-1])
    largest = PictureCollator(512, 2).heaviest(rows.train)
    assert len(largest) == 2 and rows.train.positions[largest[0]] == rows.train.positions.max()
