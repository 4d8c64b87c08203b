"""Which characters of a rendered conversation the assistant wrote.

Works for any chat template, without knowing it: a turn lies between the prompt that would ask for it and the
conversation rendered up to it. Where a template rewrites earlier turns (Qwen3 removes their thinking), those two are no
prefix of the whole, and the turn is found by rendering the conversation again with a mark in place of the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.data.fold import Render, Tools
from lorafit.data.rows import Message
from lorafit.data.tokens import Span, common_length
from lorafit.errors import DataError

MARK = "\ue0f1\ue0f2\ue0f3answer\ue0f3\ue0f2\ue0f1"  # private-use characters: no text holds them, nothing trims them


@dataclass(frozen=True)
class Scene:
    """What is known of a template.

    Attributes:
        render: The template.
        header: The text its generation prompt adds, e.g. `<|im_start|>assistant` and a newline; may be empty.
        ends: Texts that end a turn (special tokens), the template's own first.
    """

    render: Render
    header: str
    ends: tuple[str, ...]


def answer_spans(scene: Scene, messages: Sequence[Message], tools: Tools, full: str) -> list[Span]:
    """Finds every assistant turn with its end-of-turn token, in characters of `full`.

    Args:
        scene: The template.
        messages: The conversation; assistant messages with `weight` 0 are left out.
        tools: The functions offered.
        full: The conversation rendered.

    Raises:
        DataError: The template refuses the conversation, or does not show an answer.
    """
    spans: list[Span] = []
    floor = 0
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            span = _turn(scene, messages, tools, full, index, floor)
            floor = span[1]
            if message.get("weight") != 0:
                spans.append(span)
    return spans


def _turn(scene: Scene, messages: Sequence[Message], tools: Tools, full: str, index: int, floor: int) -> Span:
    asked = _prefix(scene, messages[:index], tools, True, full)
    if asked is None:
        return _marked_turn(scene, messages, tools, full, index, floor, None)
    last = index == len(messages) - 1
    through = len(full) if last else _prefix(scene, messages[: index + 1], tools, False, full)
    if through is None or through < asked:
        return _marked_turn(scene, messages, tools, full, index, floor, asked)
    turn = full[asked:through]
    body = turn.rstrip()
    # the newline after <|im_end|> is never generated; without an end token, whitespace is all that ends a turn
    return asked, asked + len(body if body.endswith(scene.ends) else turn)


def _prefix(scene: Scene, messages: Sequence[Message], tools: Tools, generation_prompt: bool, full: str) -> int | None:
    """The length of the messages rendered, where that is how `full` starts; else None."""
    if not messages:
        return None
    try:
        text = scene.render(messages, tools, generation_prompt)
    except DataError:  # some templates want a user message first
        return None
    return len(text) if full.startswith(text) else None


def _marked_turn(
    scene: Scene,
    messages: Sequence[Message],
    tools: Tools,
    full: str,
    index: int,
    floor: int,
    asked: int | None,
) -> Span:
    marked = list(messages)
    marked[index] = {"role": "assistant", "content": MARK}
    text = scene.render(marked, tools, False)
    at = text.find(MARK)
    if at < 0:
        raise DataError(f"the chat template does not show answer number {index + 1}")
    after = text[at + len(MARK) :]
    if not full.endswith(after):
        raise DataError(f"the chat template changes what follows message {index + 1} with its content")
    content = common_length(full, text[:at])
    end = len(full) - len(after)
    rest = after.lstrip()
    marker = next((end_text for end_text in scene.ends if rest.startswith(end_text)), None)
    if marker is not None:
        end += len(after) - len(rest) + len(marker)
    if asked is None:
        header = full.rfind(scene.header, floor, content) if scene.header else -1
        asked = content if header < 0 else header + len(scene.header)
    return asked, max(asked, end)
