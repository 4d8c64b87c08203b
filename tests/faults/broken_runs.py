"""What the tests of faults do to a run."""

import json
from pathlib import Path

from lorafit.run import Run
from lorafit.train import Trained, train


def go_on(directory: Path, lines: list[str]) -> Trained:
    """Take a run up."""
    recipe = Run.open(directory).recipe.model_copy(update={"output_dir": str(directory)})  # it may be a copy
    return train(recipe, resume=True, on_notice=lines.append)


def set_state(directory: Path, state: str) -> None:
    """What a run says of itself."""
    record = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**record, "state": state}))
