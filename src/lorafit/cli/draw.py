"""Pictures of a run of task text_to_image, for `lorafit generate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import AdapterFileError, ConfigError

if TYPE_CHECKING:
    from lorafit.cli.output import Output
    from lorafit.diffusion.draw import Drawing
    from lorafit.run import Run


def draw_picture(
    out: "Output",
    run: "Run",
    drawing: "Drawing",
    output: Path | None,
    *,
    adapters: Sequence[str],
    weights: Sequence[float],
    base: bool,
) -> None:
    """Draw one picture, write it and say what it is.

    Raises:
        ConfigError: No file to write to, or options that do not fit each other or the model.
        RunError: The run has no adapter yet, and none is named.
    """
    from lorafit.diffusion.draw import Painter, check_output, save_picture
    from lorafit.recipe import PICTURES

    if output is None:
        raise ConfigError("where to? give --output picture.png")
    check_output(output)
    if base and (adapters or weights):
        raise ConfigError("--base draws without any adapter: leave --adapter and --weights out")
    if weights and len(weights) != max(len(adapters), 1):
        raise ConfigError(f"--weights has {len(weights)} numbers for {max(len(adapters), 1)} adapters")
    if not adapters and not base:
        run.check_has_adapter(PICTURES)
        run.check_adapter()
    folders = [_adapter_of(run, name) for name in adapters] or [run.adapter]
    painter = Painter(run)
    painter.arguments(drawing)  # what does not fit is told before the work
    if not base:
        painter.put_on(folders, list(weights) or [1.0] * len(folders))
    save_picture(painter.draw(drawing), output)
    settings: dict[str, Any] = painter.arguments(drawing) | {"seed": painter.seed(drawing)}
    model = "base" if base else "tuned"
    size = f"{settings['width']} x {settings['height']} pixels"
    out.console.print(
        f"Wrote {output}: {size} by the {model} model, seed {settings['seed']}, {settings['num_inference_steps']} "
        "steps.",
        markup=False,
        soft_wrap=True,
    )
    out.result({"run": str(run.directory), "model": model, "output": str(output), "adapters": list(adapters),
                "weights": list(weights), **settings})  # fmt: skip


def _adapter_of(run: "Run", name: str) -> Path | str:
    """What `--adapter` names: a checkpoint's step, a run, a folder or hub id, a file of diffusers or kohya."""
    from lorafit.diffusion.files import lora_file
    from lorafit.evaluate.adapter import find_other

    if (file := lora_file(name)) is not None:
        return file
    if Path(name).expanduser().is_file():
        raise AdapterFileError(
            f"{name} is no adapter: give a .safetensors file, a folder, a run or a checkpoint's step"
        )
    return find_other(run, name).folder
