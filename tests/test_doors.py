"""Who may import whom: the architecture's doors, held by reading every source file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "lorafit"
FILES = sorted(PACKAGE.rglob("*.py"))

# Room -> rooms of lorafit it must not know. Nothing but the entry points imports cli.
SHUT = {
    "kernels": {"lora", "data", "models", "recipe", "train", "evaluate", "export", "serve", "report", "demo"},
    "metrics": {"kernels", "lora", "data", "models", "train", "evaluate", "export", "serve", "report", "demo", "run"},
    "lora": {"data", "models", "recipe", "train", "evaluate", "export", "serve", "report", "demo"},
    "data": {"lora", "recipe", "train", "evaluate", "export", "serve", "report", "demo"},
    "train": {"evaluate", "export", "serve", "report", "demo"},
    "diffusion": {"evaluate", "export", "serve", "report", "demo"},
    "evaluate": {"export", "serve", "report", "demo"},
    "report": {"kernels", "lora", "models", "data", "train", "evaluate", "export", "serve", "demo"},
}
# Room -> packages that no file of it imports when it is itself imported.
HEAVY = {
    "kernels": {"transformers", "accelerate", "bitsandbytes", "datasets", "peft"},
    "lora": {"transformers", "accelerate", "bitsandbytes", "datasets", "peft"},
    "metrics": {"torch", "transformers"},
    "report": {"torch", "transformers"},
    "cli": {"torch", "transformers", "datasets", "pydantic", "numpy", "yaml", "matplotlib", "jinja2"},
    "__init__": {"torch", "transformers", "pydantic"},
}
EVERY_START_IMPORTS = {"main", "options", "output", "adapters", "adapter_files", "__init__"} | {
    file.stem for file in (PACKAGE / "cli").glob("*.py") if f"def {file.stem}(" in file.read_text()
}


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path, *, at_start: bool) -> Iterator[str]:
    """Full names of imported modules; with `at_start` only those that run when the file is imported."""
    package = ("lorafit", *file.relative_to(PACKAGE).parent.parts)

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(file.read_text()))


def rooms_known(file: Path) -> set[str]:
    names = [name.split(".") for name in imports(file, at_start=False)]
    return {parts[1] for parts in names if parts[0] == "lorafit" and len(parts) > 1}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_doors_stay_shut(file: Path):
    known = rooms_known(file)
    assert not known & SHUT.get(room(file), set())
    assert "cli" not in known or room(file) in {"cli", "__main__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_heavy_packages_come_late(file: Path):
    if room(file) == "cli" and file.stem not in EVERY_START_IMPORTS:
        return
    packages = {name.split(".")[0] for name in imports(file, at_start=True)}
    assert not packages & HEAVY.get(room(file), set())


def test_diffusion_is_for_pictures_alone():
    """Only late imports know the room, and only that of diffusers at its own place."""
    outside = [file for file in FILES if room(file) != "diffusion" and file.parent.name != "_pictures"]
    for file in outside:
        assert not [name for name in imports(file, at_start=True) if name.startswith("lorafit.diffusion")], file
    for file in FILES:
        assert not [name for name in imports(file, at_start=True) if name.split(".")[0] == "diffusers"], file


def test_a_run_of_texts_loads_nothing_of_diffusion():
    code = (
        "import sys, lorafit.train, lorafit.evaluate, lorafit.report.page, lorafit.cli.train\n"
        "from lorafit.train.tasks import task_of\n"
        "from lorafit.recipe import load_recipe\n"
        "task_of(load_recipe(sets=['model.name=x', 'data.train_files=y']))\n"
        "print([name for name in sys.modules if name.startswith(('diffusers', 'lorafit.diffusion'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_reader_sees_relative_and_late_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "data" / "formats" / "chat.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ...lora import attach\nfrom .. import mask\ndef late():\n    import lorafit.run\n")
    assert list(imports(file, at_start=False)) == ["lorafit.lora.attach", "lorafit.data.mask", "lorafit.run"]
    assert list(imports(file, at_start=True)) == ["lorafit.lora.attach", "lorafit.data.mask"]


@pytest.mark.parametrize("module", ["lorafit", "lorafit.cli.main"])
def test_importing_loads_nothing_heavy(module: str):
    heavy = "{'torch', 'transformers', 'pydantic', 'numpy', 'datasets', 'rich', 'matplotlib', 'jinja2'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
