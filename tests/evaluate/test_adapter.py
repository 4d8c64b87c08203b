"""Which adapter a name means, and what is said about one whose past is not known."""

import json
from pathlib import Path

import pytest
from small_runs import small_run

from lorafit.errors import AdapterFileError, RunError
from lorafit.evaluate import find_other
from lorafit.run import LABELS_FILE, TEMPLATE_FILE, Run


def write_adapter(folder: Path, base: str = "some/model", **beside: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    for name, text in beside.items():
        (folder / {"template": TEMPLATE_FILE, "labels": LABELS_FILE}[name]).write_text(text)
    return folder


def labels(*names: str) -> str:
    return json.dumps({"id2label": dict(enumerate(names))})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = small_run(tmp_path / "run")
    write_adapter(run.adapter, template="{{ ours }}")
    write_adapter(run.checkpoints / "checkpoint-40")
    write_adapter(run.checkpoints / "checkpoint-8")
    return run


@pytest.mark.parametrize("name", ["40", "checkpoint-40"])
def test_a_checkpoint_by_its_step(run: Run, name: str):
    found = find_other(run, name)
    assert (found.name, found.folder, found.notes) == ("checkpoint-40", run.checkpoints / "checkpoint-40", ())
    assert find_other(run, str(found.folder)).notes == ()  # by its path it is as well known
    with pytest.raises(RunError, match=r"no checkpoint of step 9: there are those of the steps 8, 40 .*write \./9"):
        find_other(run, "9")


def test_what_a_folder_does_not_tell(run: Run, tmp_path: Path):
    same = find_other(run, str(write_adapter(tmp_path / "same", template="{{ ours }}")))
    assert len(same.notes) == 1 and "it may have seen the rows" in same.notes[0]
    other = find_other(run, str(write_adapter(tmp_path / "other", base="x/y", template="{{ theirs }}")))
    assert "names x/y as its base model; here it is put on some/model" in other.notes[1]
    assert "was trained with another chat template" in other.notes[2]
    with pytest.raises(AdapterFileError, match="is not a folder with"):
        find_other(run, str(tmp_path / "absent"))


def test_another_run_is_known_by_its_files(run: Run, tmp_path: Path):
    other = small_run(tmp_path / "other")
    write_adapter(other.adapter, template="{{ ours }}")
    assert (find_other(run, str(other.directory)).folder, find_other(run, str(other.directory)).notes) == (
        other.adapter,
        (),
    )
    other.update(data={**other.record["data"], "rows_sha256": "c" * 64})
    assert "was trained on other rows" in find_other(run, str(other.directory)).notes[0]
    foreign = small_run(tmp_path / "foreign", model="another/model")
    with pytest.raises(RunError, match=r"is an adapter of another/model, and the base model of .* is some/model"):
        find_other(run, str(foreign.directory))


def test_a_head_for_other_classes_is_refused(tmp_path: Path):
    run = small_run(tmp_path / "run", sets=["task=classification"])
    write_adapter(run.adapter, labels=labels("a", "b"))
    same = write_adapter(tmp_path / "same", labels=labels("a", "b"))
    assert find_other(run, str(same)).folder == same
    for name, theirs in (("more", labels("a", "b", "c")), ("turned", labels("b", "a"))):
        other = write_adapter(tmp_path / name, labels=theirs)
        with pytest.raises(RunError, match=r"tells apart the classes .*, and .*run a, b"):
            find_other(run, str(other))
    several = json.loads(labels("a", "b")) | {"problem_type": "multi_label_classification"}
    other = write_adapter(tmp_path / "several", labels=json.dumps(several))
    with pytest.raises(RunError, match=r"is of the kind multi_label_classification, and .* of single_label_classif"):
        find_other(run, str(other))
