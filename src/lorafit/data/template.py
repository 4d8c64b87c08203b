"""From a row to token ids and labels, through a chat template; the same template serves inference.

The template is the user's own, else the tokenizer's, else `PLAIN`. Its text (`Template.source`) is saved with the
adapter, so that what was trained is what is prompted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import jinja2

from lorafit.data.bounded import TemplateTooLongError, bounded
from lorafit.data.fold import Tools, fit, probe, uses_tools
from lorafit.data.mask import MARK, Scene, answer_spans
from lorafit.data.rows import Message, Row
from lorafit.data.shorten import shorten
from lorafit.data.tokens import Span, Tokens
from lorafit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] }}"
    "{%- elif message['role'] == 'user' -%}{{ '### Instruction:\n' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '### Response:\n' + message['content'] + eos_token }}"
    "{%- else -%}{{ raise_exception('unknown role: ' + message['role']) }}"
    "{%- endif -%}"
    "{%- if not loop.last -%}{{ '\n\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n\n### Response:\n' }}{%- endif -%}"
)
"""For base models without a template of their own: plain headers, an answer ends with the end-of-text token.

Chosen by Gemma 3 270M's (base) loss on 30 Alpaca answers: 2.00 a token and 4.56 for the end, against 2.06 to 2.08 and
5.4 to 5.7 with User / Assistant on lines of their own, 2.14 and 5.0 with ChatML's markers, 2.34 to 2.40 and 5.3 to 5.9
with `User: ` before the text.
"""

# What a template may raise on messages it was not written for; jinja2 writes Python and runs its operators.
REFUSALS = (
    jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError,
    NameError, SyntaxError, MemoryError,
)  # fmt: skip
LONGEST_TEXT = 1 << 28
"""Characters of a rendered conversation."""
RESPONSES, ALL = "responses", "all"


@dataclass(frozen=True)
class Encoded:
    """A row as tokens.

    Attributes:
        input_ids: Token ids; one BOS at the start where the tokenizer or template uses it.
        labels: As long as `input_ids` and not shifted: the id where it is trained, -100 elsewhere; never at position 0,
            which nothing predicts.
        cut: Tokens removed to fit `max_length`.
        answer_cut: Those of them that were the end of the answer (or of a plain text).
    """

    input_ids: list[int]
    labels: list[int]
    cut: int = 0
    answer_cut: int = 0

    @property
    def trained(self) -> int:
        """The number of tokens with a label."""
        return sum(label != -100 for label in self.labels)


@dataclass(frozen=True)
class _Rendered:
    text: str
    spans: list[Span]
    plain: bool


class Template:
    """A tokenizer's chat template with what training and generation need of it.

    Args:
        tokenizer: Its chat template is used when none is given.
        chat_template: Jinja text or the path of a file that holds it.

    Attributes:
        source: The Jinja text, for the adapter's folder.
        notes: What a user should know about the choice, in sentences.
        problems: What the template gets wrong and is mended here, in sentences.
        stop_token_ids: Tokens that end an answer.

    Raises:
        DataError: The template cannot be found, does not parse or shows no answers, or the tokenizer has no
            end-of-text token.
    """

    source: str
    notes: list[str]
    problems: list[str]
    stop_token_ids: list[int]

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", chat_template: str | None = None):
        if tokenizer.eos_token_id is None or tokenizer.eos_token is None:
            raise DataError(
                "the tokenizer has no end-of-text token, so an answer could never end; set tokenizer.eos_token "
                "(is this a model that generates text?)"
            )
        self.tokenizer = tokenizer
        self.notes, self.problems = [], []
        self._tokens = Tokens(tokenizer)
        self._eos = cast(int, tokenizer.eos_token_id)
        self._bos = cast(int | None, tokenizer.bos_token_id)
        self._adds_bos = tokenizer("a").input_ids[:1] == [self._bos]
        bounded(lambda: self._learn(chat_template), "a greeting")

    def render(self, messages: Sequence[Message], tools: Tools = None, generation_prompt: bool = False) -> str:
        """A conversation as text, with what the template cannot show (system, tools) folded into what it can.

        Raises:
            DataError: The template refuses the conversation.
        """
        fitted, tools = fit(messages, tools, self._can)
        return bounded(lambda: self._render(fitted, tools, generation_prompt), "a conversation")

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Token ids of a conversation up to where the model answers (generation prompt, no special tokens added).

        Raises:
            DataError: The template refuses the conversation.
        """
        text, spans = bounded(lambda: self._asked(messages, tools), "a conversation")
        [(ids, _)] = self._tokens.encode([text], [spans])
        return ids[self._doubled_bos(ids) :]

    def _asked(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[Span]]:
        fitted, tools = fit(messages, tools, self._can)
        text = self._render(fitted, tools, generation_prompt=True)
        bare = self._render(fitted, tools)
        # earlier answers are cut as in training, so that they are the tokens the model once wrote
        return text, answer_spans(self._scene, fitted, tools, bare) if text.startswith(bare) else []

    def encode(self, row: Row, max_length: int, train_on: str = RESPONSES) -> Encoded:
        """Tokens and labels of one row; see `encode_batch`.

        Raises:
            DataError: The template refuses the row.
        """
        [encoded] = self.encode_batch([row], max_length, train_on)
        if isinstance(encoded, DataError):
            raise encoded
        return encoded

    def encode_batch(
        self, rows: Sequence[Row], max_length: int, train_on: str = RESPONSES
    ) -> list[Encoded | DataError]:
        """Tokens and labels of rows, tokenized together.

        Every assistant turn with its end-of-turn token carries labels; a plain text carries them everywhere. What
        follows the last answer is left out: nothing there is trained. A row longer than `max_length` loses tokens
        of its prompt, from the left but for BOS; an answer too long by itself loses its end.

        Args:
            rows: Conversations and plain texts.
            max_length: The most tokens a row may have.
            train_on: "responses", or "all" for labels on the prompt too.

        Returns:
            For each row its tokens, or why the template refuses it.

        Raises:
            TemplateTooLongError: The template takes more time or memory for a row than any needs.
        """
        results: list[Encoded | DataError] = []
        rendered: list[_Rendered] = []
        for row in rows:
            try:
                rendered.append(bounded(partial(self._rendered, row), f"the row {row.where}"))
            except TemplateTooLongError:  # it would take as long for the next
                raise
            except DataError as error:
                rendered.append(_Rendered("", [], plain=True))
                results.append(error)
            else:
                results.append(Encoded([], []))
        tokenized = self._tokens.encode([r.text for r in rendered], [r.spans for r in rendered])
        for index, (kind, (ids, spans)) in enumerate(zip(rendered, tokenized, strict=True)):
            if isinstance(results[index], Encoded):
                results[index] = self._label(kind, ids, spans, max_length, train_on)
        return results

    def explain(self, rows: Iterable[Row]) -> list[str]:
        """`notes`, and what had to be folded to show these rows."""
        notes = list(self.notes)
        chats = [row for row in rows if row.messages is not None]
        if not self._can.system and any(m["role"] == "system" for row in chats for m in row.messages or ()):
            notes.append("The chat template takes no system message: it is put before the next user message.")
        if not self._can.tools and any(uses_tools(row.messages or (), row.tools) for row in chats):
            notes.append("The chat template shows no tools: they are written as text (<tool_call>, <tool_response>).")
        return notes

    def _learn(self, chat_template: str | None) -> None:
        self.source = self._choose(chat_template)
        self._can = probe(self._render)
        self._study()

    def _choose(self, chat_template: str | None) -> str:
        try:
            own = self.tokenizer.get_chat_template() if self.tokenizer.chat_template is not None else None
        except ValueError as error:  # several templates, none of them the default
            raise DataError(f"the tokenizer's chat template cannot be chosen, give one: {error}") from error
        if own is not None and chat_template in (None, own):  # equal when a saved source comes back
            self.notes.append("Chat template: the tokenizer's own.")
            return own
        if chat_template is None:
            self.notes.append("Chat template: lorafit's plain one (the tokenizer has none).")
            source = PLAIN
        else:
            self.notes.append("Chat template: the one given.")
            source = _template_text(chat_template)
        # PLAIN and a user's template leave BOS to us: it must be in the text that is saved, for every later user
        if self._adds_bos and not self._shows_bos(source):
            source = "{{ bos_token }}" + source
        return source

    def _shows_bos(self, source: str) -> bool:
        self.source = source
        text = self._render([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}])
        return self._tokens.ids(text)[:1] == [self._bos]

    def _study(self) -> None:
        """Learns how the template opens and ends an answer."""
        question: Message = {"role": "user", "content": "u"}
        text = self._render([question, {"role": "assistant", "content": MARK}])
        if MARK not in text:
            raise DataError("the chat template does not show what the assistant says; check its roles and keys")
        tail = text[text.find(MARK) + len(MARK) :].strip()
        asked, bare = self._render([question], None, True), self._render([question])
        header = asked[len(bare) :] if asked.startswith(bare) else ""
        special = {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special and t.content.strip()}
        tail_ids = self._tokens.ids(tail) if tail else []
        ends = [tail] if tail else []
        ends += sorted({*special, *self.tokenizer.all_special_tokens} - {*ends}, key=len, reverse=True)
        self._end_ids = {self._eos, *self.tokenizer.all_special_ids, *tail_ids[:1]}
        self._end_ids |= {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        stops = {self._eos}
        if tail_ids and (len(tail_ids) == 1 or self._tokens.is_special(tail_ids[0])):
            stops.add(tail_ids[0])
        self.stop_token_ids = sorted(stops)
        self._scene = Scene(self._render, header, tuple(ends))
        if not tail_ids or tail_ids[-1] not in self._end_ids:
            eos = self.tokenizer.eos_token
            self.problems.append(f"The chat template ends answers with no special token: {eos} is added to each row.")
        if doubled := self._doubled_bos(self._tokens.ids(text)):
            bos = self.tokenizer.bos_token
            self.problems.append(f"The chat template begins with {doubled + 1} times {bos}: one of them is kept.")
        self.notes += self.problems

    def _render(self, messages: Sequence[Message], tools: Tools = None, generation_prompt: bool = False) -> str:
        shown = [{k: v for k, v in m.items() if v is not None and k != "weight"} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                shown,
                tools=tools,  # pyright: ignore[reportArgumentType]  # a list is invariant
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template is not valid Jinja (line {error.lineno}): {error.message}") from error
        except REFUSALS as error:
            raise DataError(f"the chat template refuses it: {error}") from error
        assert isinstance(text, str)
        if len(text) > LONGEST_TEXT:
            raise DataError(f"the chat template makes {len(text):,} characters of it")
        return text

    def _rendered(self, row: Row) -> _Rendered:
        if row.messages is None:
            return _Rendered(row.text or "", [], plain=True)
        messages, tools = fit(row.messages, row.tools, self._can)
        full = self._render(messages, tools)
        spans = answer_spans(self._scene, messages, tools, full)
        return _Rendered(full[: spans[-1][1]] if spans else full, spans, plain=False)

    def _label(self, kind: _Rendered, ids: list[int], spans: list[Span], max_length: int, train_on: str) -> Encoded:
        if kind.plain and self._adds_bos:
            ids = [cast(int, self._bos), *ids]
        doubled = self._doubled_bos(ids)
        ids, spans = ids[doubled:], [(max(a - doubled, 0), max(b - doubled, 0)) for a, b in spans]
        if ids and (ids[-1] != self._eos if kind.plain else bool(spans) and ids[-1] not in self._end_ids):
            ids = [*ids, self._eos]
            spans = [*spans[:-1], (spans[-1][0], len(ids))] if spans else []
        if kind.plain or train_on == ALL:
            labels = list(ids)
        else:
            labels = [-100] * len(ids)
            for start, end in spans:
                labels[start:end] = ids[start:end]
        labels[:1] = [-100] if ids else []
        head = 1 if ids and ids[0] == self._bos else 0
        answer = spans[-1][0] if spans else head
        return Encoded(*shorten(ids, labels, head, answer, max_length))

    def _doubled_bos(self, ids: list[int]) -> int:
        """How many BOS tokens stand too many at the start."""
        doubled = 0
        while self._bos is not None and ids[doubled : doubled + 2] == [self._bos, self._bos]:
            doubled += 1
        return doubled


def _template_text(chat_template: str) -> str:
    if "{{" in chat_template or "{%" in chat_template:
        return chat_template
    path = Path(chat_template)
    if not path.is_file():
        raise DataError(f"chat_template {chat_template!r} is neither a file nor Jinja text (no '{{{{' in it)")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"chat_template {chat_template} is not UTF-8: {error.reason}") from error
