"""The plan of a recipe before anything of it is loaded."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lorafit.beside import beside
from lorafit.models import ResolvedModel, context_of, load_tokenizer, resolve
from lorafit.recipe import PICTURES, Recipe
from lorafit.train.remembered import recall, remember, rows_place
from lorafit.train.sizes import Rows, resident_bytes

if TYPE_CHECKING:
    from lorafit.train.plan import Plan


def plan_recipe(recipe: Recipe, device: str | None = None, *, on_message: Callable[[str], None]) -> "Plan":
    """Predict memory and time from the recipe alone, and settle what it leaves to us.

    The rows are prepared beside this process while it imports torch and transformers' models; what an earlier plan has
    found is taken from the cache.

    Args:
        recipe: the settings.
        device: the name of a GPU of the table; None is the machine at hand.
        on_message: takes a line for the user before long work.

    Raises:
        LorafitError: Anything wrong with settings, rows or model.
    """
    if recipe.task == PICTURES:
        return _plan_of_pictures(recipe, device, on_message)
    resolved = resolve(recipe.model.name, revision=recipe.model.revision, on_message=on_message)
    place = rows_place(recipe, resolved)
    known = recall(place)
    preparing = beside(_prepared, recipe, resolved) if known is None else nullcontext(partial(Rows.from_dict, known))
    with preparing as sizes:
        from lorafit.train.planned import look_at, plan_sizes  # torch, before which a fork is safe

        model = look_at(recipe, resolved, device, trace=True) if known is None else None
        before = resident_bytes()
        rows = sizes()
        grown = max(resident_bytes() - before, 0)  # where they were prepared here
    if known is None:
        remember(place, rows.to_dict())
    return plan_sizes(recipe, resolved, rows, device, model, program_besides=grown)


def _prepared(recipe: Recipe, resolved: ResolvedModel) -> Rows:
    """Sizes of the training rows, with what tokenizer and rows take."""
    from transformers import AutoTokenizer  # noqa: F401 (counts with the program)

    from lorafit.train.rows import rows_to_train_on

    trusts = recipe.model.trust_remote_code
    recipe = recipe.with_context(lambda: context_of(resolved, trust_remote_code=trusts))
    before = resident_bytes()
    tokenizer = load_tokenizer(resolved, trust_remote_code=trusts)
    rows = rows_to_train_on(recipe, tokenizer)
    sizes = Rows.of(rows.train, pairs=recipe.task == "seq2seq")
    return replace(sizes, held=max(resident_bytes() - before, 0))


def _plan_of_pictures(recipe: Recipe, device: str | None, on_message: Callable[[str], None]) -> "Plan":
    """The same for a folder of pictures, of which only captions and sizes are read."""
    from lorafit.train.planned import plan_run
    from lorafit.train.tasks import task_of

    task = task_of(recipe)
    resolved = resolve(recipe.model.name, revision=recipe.model.revision, pipeline=True, on_message=on_message)
    return plan_run(recipe, resolved, task.prepare(recipe, task.reader(resolved, recipe)).train, device)
