"""lm-eval's tasks on base and tuned model, beside lm-eval on a plain model and on PEFT's."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import run, run_json

from lorafit.errors import ConfigError, DataError, MissingExtraError
from lorafit.evaluate import Suite, TaskFigure
from lorafit.run import Run

TASKS = {
    "choices": "output_type: multiple_choice\ndoc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\n"
    "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n",
    "texts": "output_type: loglikelihood_rolling\ndoc_to_target: '{{question}}'\n"
    "metric_list:\n  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}\n",
}
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with two tasks whose rows lie in a file beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": f"Greet guest {number}.", "choices": [f"Hello, guest {number}!", f"guest {number} Hello"],
         "answer": number % 3 % 2} for number in range(12)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, settings in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/rows.jsonl\n"
        text = "doc_to_text: '{{question}} '\n" if name == "choices" else "doc_to_text: ''\n"
        (folder / f"{name}.yaml").write_text(f"{head}test_split: test\n{text}{settings}")
    hub = TASKS["choices"] + "dataset_path: allenai/ai2_arc\ntest_split: test\ndoc_to_text: x\n"
    (folder / "far.yaml").write_text(f"task: far\n{hub}")
    return folder


def test_base_and_tuned_are_lm_evals_own_figures(capsys, tiny_run: Path, tasks: Path, tmp_path: Path):
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    opened = Run(shutil.copytree(tiny_run, tmp_path / "run"))
    before = (opened.directory / "eval.json").read_bytes()
    found = run_json(capsys, "eval", opened.directory, "--suite", "choices,texts", "--suite-path", tasks)
    assert (opened.directory / "eval.json").read_bytes() == before and "metrics" not in found
    assert found["suite"] == opened.suite and [*found["suite"]] == ["choices", "texts"]

    base = opened.recipe.model.name
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = []
    for wrap in (lambda model: model, lambda model: PeftModel.from_pretrained(model, opened.adapter)):
        loaded = TaskManager(include_path=str(tasks), include_defaults=False).load(["choices", "texts"])
        subject = HFLM(pretrained=wrap(plain), tokenizer=AutoTokenizer.from_pretrained(base), batch_size=1)
        theirs.append(evaluate(subject, loaded, bootstrap_iters=0, log_samples=True))
    for task, metric in (("choices", "acc"), ("texts", "byte_perplexity")):
        figure = found["suite"][task]["metrics"][metric]
        expected = [float(one["results"][task][f"{metric},none"]) for one in theirs]
        assert [figure["base"], figure["tuned"]] == pytest.approx(expected, rel=1e-5)
        assert figure["difference"] == figure["tuned"] - figure["base"]
        assert found["suite"][task]["rows"] == 12
    assert theirs[0]["results"]["texts"] != theirs[1]["results"]["texts"]
    right = [np.array([sample["acc"] for sample in one["samples"]["choices"]]) for one in theirs]
    draws = np.random.default_rng(0).integers(0, 12, (20_000, 12))
    ends = np.percentile((right[1] - right[0])[draws].mean(axis=1), [2.5, 97.5])
    assert found["suite"]["choices"]["metrics"]["acc"]["interval"] == pytest.approx(ends, abs=0.09)
    assert found["suite"]["texts"]["metrics"]["byte_perplexity"]["interval"] is None  # no mean of its rows

    command = ("eval", opened.directory, "--suite-path", tasks, "--suite")
    output, _ = run(capsys, *command, "choices", "--suite-limit", 4)
    assert "choices, 4 rows" in output and max(map(len, output[: output.index("All of it")].splitlines())) <= 80
    assert opened.suite["choices"]["limit"] == 4 and opened.suite["texts"]["rows"] == 12  # the other task stays
    written = (opened.directory / "eval_suite.json").read_bytes()
    other = run_json(capsys, *command, "choices", "--adapter", shutil.copytree(opened.adapter, tmp_path / "other"))
    assert other["suite"]["choices"]["metrics"] == found["suite"]["choices"]["metrics"]
    assert (opened.directory / "eval_suite.json").read_bytes() == written


def test_what_cannot_be_asked(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"'helaswag' \(did you mean hellaswag.*no task 'chioces' \(did you mean cho"):
        Suite.find(["helaswag", "chioces", "choices"], tasks)
    with pytest.raises(ConfigError, match="is no folder"):
        Suite.find(["choices"], tmp_path / "none")

    def unreachable(*arguments, **settings):
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub")

    with monkeypatch.context() as patch:
        patch.setattr("datasets.load_dataset", unreachable)
        with pytest.raises(DataError, match=r"--suite far: its rows lie on the hub.*ai2_arc.*--suite-path DIR"):
            Suite.find(["far"], tasks)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lorafit\[lm-eval\]'"):
        Suite.find(["choices"], tasks)


def test_options_that_need_each_other(capsys, tiny_run: Path, tasks: Path):
    assert "are for --suite TASKS" in run(capsys, "eval", tiny_run, "--suite-path", tasks, code=2)[1]
    assert "names no task" in run(capsys, "eval", tiny_run, "--suite", " , ", code=2)[1]


@pytest.mark.parametrize(
    ("interval", "higher", "kind"),
    [((0.1, 0.3), True, "better"), ((0.1, 0.3), False, "worse"), ((-0.3, -0.1), True, "worse"),
     ((-0.3, -0.1), False, "better"), ((-0.1, 0.3), True, "no difference"), (None, True, ""), ((0.1, 0.3), None, "")],
)  # fmt: skip
def test_what_a_difference_is(interval, higher, kind: str):
    assert TaskFigure(0.2, 0.4, interval, higher).kind == kind
