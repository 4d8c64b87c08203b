"""A chat template in Go's syntax, as Ollama renders it, with the very text that the trained one puts around messages.

The trained (Jinja) template is not translated but observed: conversations of marks show what stands before, between and
behind messages. Conversations put together from these pieces must equal the trained template's, or there is an error.
This covers templates that take turns: Gemma, Llama 3, ChatML (Qwen), Mistral, lorafit's plain one, ...
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.data import Template
from lorafit.data.rows import Message
from lorafit.errors import DataError, ModelError

QUESTION, ANSWER, NEXT, SYSTEM = "Mark one?", "Mark two.", "Mark three?", "Mark four."
TRIED = (  # questions and answers in turn, which the pieces must render as the template does
    ["Hi"],
    ["One\n\ntwo lines", "Yes: <b>no</b> {{ curly }}", "And then?"],
    ["a", "b", "c", "d", "e"],
    ["Wie geht's?", "Gut, 東京 🙂", "Why?", "Because.", "Really?", "Yes.", "Well"],
)


@dataclass(frozen=True)
class Turns:
    """What a template puts around the messages of a conversation.

    Attributes:
        start: before the first question.
        answer: between a question and its answer.
        question: between an answer and the next question.
        opening: behind the last question, where the model answers.
        before_system: before a system message, which stands with the first question.
        after_system: between it and the first question.
    """

    start: str
    answer: str
    question: str
    opening: str
    before_system: str
    after_system: str

    def render(self, contents: Sequence[str], system: str | None = None) -> str:
        """A conversation of questions and answers in turn, up to where the model answers."""
        parts = [self.start if system is None else f"{self.before_system}{system}{self.after_system}"]
        for index, content in enumerate(contents[:-1]):
            parts += [content, self.question if index % 2 else self.answer]
        return "".join([*parts, contents[-1], self.opening])

    def go(self) -> str:
        """As a Go template over Ollama's `.System` and `.Messages`."""
        closing = _text(self.opening)
        if self.opening != self.answer:
            closing = f"{{{{ if $last }}}}{closing}{{{{ else }}}}{_text(self.answer)}{{{{ end }}}}"
        system = f"{_text(self.before_system)}{{{{ .System }}}}{_text(self.after_system)}"
        return (
            f"{{{{ if .System }}}}{system}{{{{ else }}}}{_text(self.start)}{{{{ end }}}}"
            "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{closing}'
            '{{ else if eq .Role "assistant" }}{{ .Content }}'
            f"{{{{ if not $last }}}}{_text(self.question)}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
        )


def turns_of(template: Template, bos: str) -> Turns:
    """Observe a template.

    Args:
        template: the trained one.
        bos: text that the runtime puts in front itself ("" for none).

    Raises:
        ModelError: It does more than putting texts around messages in turn; names a conversation that shows it.
    """
    asked = [QUESTION, ANSWER, NEXT]
    first, second = _split(template, asked[:1], None), _split(template, asked, None)
    with_system = _split(template, asked[:1], SYSTEM)
    if first is None or second is None or with_system is None:
        raise _unknown("it changes messages or leaves them out", [SYSTEM, *asked])
    before, after, _ = with_system
    turns = Turns(first[0].removeprefix(bos), second[1], second[2], first[1], before.removeprefix(bos), after)
    for contents in TRIED:
        for system in (None, SYSTEM):
            if turns.render(contents, system) != _render(template, contents, system).removeprefix(bos):
                shown = [*([] if system is None else [system]), *contents]
                raise _unknown("what stands around a message depends on more than its turn", shown)
    return turns


def _split(template: Template, contents: Sequence[str], system: str | None) -> list[str] | None:
    """The texts around the messages of a conversation; None where one is not shown exactly once, in order."""
    text, parts = _render(template, contents, system), []
    for mark in [*([SYSTEM] if system is not None else []), *contents]:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            return None
        parts.append(before)
    return [*parts, text]


def _render(template: Template, contents: Sequence[str], system: str | None) -> str:
    """By the trained template."""
    messages: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    messages += [
        {"role": "assistant" if index % 2 else "user", "content": content} for index, content in enumerate(contents)
    ]
    try:
        return template.render(messages, generation_prompt=True)
    except DataError as error:
        raise _unknown(f"it refuses a conversation ({error})", contents) from error


def _unknown(reason: str, contents: Sequence[str]) -> ModelError:
    shown = json.dumps(list(contents), ensure_ascii=False)
    return ModelError(
        f"the chat template cannot be written in Go's syntax for Ollama: {reason}, as the conversation {shown} shows. "
        "Take --to gguf, whose file carries the template as it is"
    )


def _text(text: str) -> str:
    """A literal text in a Go template."""
    return text.replace("{{", '{{ "{{" }}')
