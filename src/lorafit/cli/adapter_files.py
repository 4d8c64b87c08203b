"""What the verbs of `lorafit adapters` share: which files are meant, what is written, what is said of it."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import AdapterFileError, ConfigError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lorafit.cli.output import Output
    from lorafit.lora.combine import Combination
    from lorafit.lora.stored import StoredAdapter

LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it


def located(adapter: str) -> str:
    """The folder of an adapter: a run's own, or what was given.

    Raises:
        RunError: The run has saved no adapter yet.
        AdapterFileError: A folder that only holds adapters.
    """
    from lorafit.lora.peft_format import CONFIG_FILE
    from lorafit.run import Run

    path = Path(adapter).expanduser()
    if (path / "run.json").is_file():
        run = Run.open(path)
        if not run.has_adapter:
            raise RunError(f"{path} has no adapter yet; go on with: {run.resume_command}")
        return str(run.adapter)
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        inside = sorted(file.parent for file in path.glob(f"*/{CONFIG_FILE}"))
        hint = f"name one of those in it: {', '.join(map(str, inside))}" if inside else "it lacks adapter_config.json"
        raise AdapterFileError(f"{path} is no adapter and no run; {hint}")
    return str(path) if path.is_dir() else adapter


def combination(
    method: str, density: float | None, rank: int | None, majority_sign: str, seed: int | None
) -> "Combination":
    """How adapters become one; what is drawn is drawn from the seed, 42 if not given.

    Raises:
        ConfigError: A method that does not exist, or a setting that it has not.
    """
    import torch

    from lorafit.lora.combine import Combination

    sign: Any = majority_sign  # checked by Combination
    draws = seed is not None or method.startswith("dare")
    generator = torch.Generator().manual_seed(42 if seed is None else seed) if draws else None
    return Combination(method, density, rank, sign, generator=generator)


@contextmanager
def folder_of(adapter: str) -> "Iterator[Path]":
    """The folder of an adapter in PEFT's format, for the length of the block.

    A file of diffusers or kohya, which holds a diffusion model's adapter, is put into one.

    Raises:
        RunError: The run has saved no adapter yet.
        AdapterFileError: A folder that only holds adapters, or a file that is no adapter.
    """
    from lorafit.lora.peft_format import find_adapter

    if not is_lora_file(Path(adapter).expanduser()):
        yield find_adapter(located(adapter))
        return
    from lorafit.diffusion.files import as_peft_folder

    with as_peft_folder(adapter, ()) as folder:
        yield folder


def is_lora_file(path: Path) -> bool:
    """Whether it is a file as diffusers and kohya write adapters, or a folder with diffusers' one."""
    from lorafit.lora.peft_format import CONFIG_FILE

    if path.is_dir():
        return (path / LORA_FILE).is_file() and not (path / CONFIG_FILE).is_file()
    return path.suffix == ".safetensors" and path.is_file()


def unique(adapters: "Sequence[str]", index: int) -> str:
    """The name of one of several adapters; the second of the same gets a number."""
    before = list(adapters[:index]).count(adapters[index])
    return adapters[index] if not before else f"{adapters[index]} ({before + 1})"


def numbers(texts: "Iterable[str]") -> list[float]:
    """Weights from `0.7,0.3`, also given in several options."""
    try:
        return [float(word) for word in words(texts)]
    except ValueError as error:
        raise ConfigError(f"--weights takes numbers with commas between, such as 0.7,0.3: {error}") from None


def words(texts: "Iterable[str] | None") -> list[str]:
    """Words from options that may be repeated and hold several with commas between."""
    return [word.strip() for text in texts or () for word in text.split(",") if word.strip()]


def pair(text: str) -> tuple[str, str]:
    """The old and the new prefix."""
    old, equals, new = text.partition("=")
    if not equals:
        raise ConfigError(f"--prefix {text!r} must be OLD=NEW, such as model.language_model=model")
    return old.strip(". "), new.strip(". ")


def move(adapter: str, name: str) -> Path:
    """Give an adapter's folder another name."""
    from lorafit.lora.peft_format import find_adapter

    if not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise ConfigError(f"name {name!r} must consist of letters, digits, '_', '-' and '.'")
    folder = Path(located(adapter))
    if folder != Path(adapter).expanduser() or not folder.is_dir():
        raise ConfigError(
            f"{adapter} is {'a run' if folder.is_dir() else 'no folder here'}: --name renames an adapter's own folder; "
            "write a copy with --output-dir"
        )
    folder = find_adapter(folder).resolve()
    if (folder.parent / name).exists():
        raise ConfigError(f"{folder.parent / name} exists and is not overwritten: take another name")
    return folder.rename(folder.parent / name)


def trained_whole(adapter: "StoredAdapter") -> list[str]:
    """The modules that it trains whole, or biases of."""
    return sorted({key.replace(".base_layer.", ".").rpartition(".")[0] for key in adapter.whole})


def module_names(model: str, out: "Output") -> list[str]:
    """The paths of a model's modules; no weight is read."""
    return [name for name, _ in opened(model, False, out)[0].named_modules(remove_duplicate=False) if name]


def opened(reference: str, trust_remote_code: bool, out: "Output") -> tuple[Any, Any]:
    """A model without weights, and what reads them one at a time."""
    import torch

    from lorafit.models import load_model, original_weights, resolve

    resolved = resolve(reference, on_message=lambda text: out.console.print(text, markup=False))
    model = load_model(resolved, device=torch.device("meta"), trust_remote_code=trust_remote_code)
    return model, original_weights(resolved.path, resolved.revision)


def differing_bases(adapters: "dict[str, StoredAdapter]") -> list[str]:
    """A line where the adapters name different base models."""
    bases = {name: adapter.config.base_model_name_or_path for name, adapter in adapters.items()}
    if len(set(bases.values()) - {None}) < 2:
        return []
    named = ", ".join(f"{base} ({name})" for name, base in bases.items() if base)
    return [f"The adapters name different base models: {named}. Only adapters of the same weights can be merged."]


def write(adapter: "StoredAdapter", directory: Path, folders: "Sequence[str]") -> list[str]:
    """Write an adapter and what those it was made of are used with; returns what the user has to know."""
    from lorafit.lora.peft_format import find_adapter
    from lorafit.lora.stored import files_beside, write_adapter

    alike, apart = files_beside([find_adapter(folder) for folder in folders])
    write_adapter(adapter, directory, alike)
    return [f"Left out: {', '.join(apart)}, which differ between the adapters."] if apart else []


def sizes(adapter: "StoredAdapter") -> dict[str, Any]:
    """Rank, modules and parameters, for programs."""
    ranks = [update.r for update in adapter.updates.values()]
    return {"r": max(ranks), "modules": len(ranks), "parameters": adapter.parameters}


def size_line(adapter: "StoredAdapter") -> str:
    """Rank, modules and parameters, for people."""
    figures = sizes(adapter)
    size = sum(value.nbytes for value in adapter.tensors.values())
    modules = f"Rank {figures['r']}, {figures['modules']} modules"
    return f"{modules}, {figures['parameters']:,} parameters, {size / 1e6:,.1f} MB."


def say(out: "Output", notices: "Iterable[str]") -> None:
    """What the user has to know."""
    for notice in notices:
        out.console.print(notice, style="yellow", markup=False)
