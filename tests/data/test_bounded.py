"""Chat templates that loop, recurse or grow are stopped; the sandbox keeps them in."""

import threading
import time
from functools import partial

import pytest
from tiny_tokenizers import byte_level

from lorafit.data import Template, bounded
from lorafit.data.bounded import TemplateTooLongError
from lorafit.data.rows import Row
from lorafit.errors import DataError

PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = 1 %}{% endfor %}{% endfor %}"
RECURSION = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
GROWTH = (
    "{% set s = namespace(a='x' * 999999) %}{% for i in range(99999) %}{% set s.a = s.a + s.a[:9999999] %}{% endfor %}"
)
ROW = Row("rows.jsonl:3", messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


@pytest.mark.parametrize("bomb", [LOOP, RECURSION], ids=["loop", "recursion"])
def test_a_template_that_never_ends_is_stopped(monkeypatch, bomb):
    monkeypatch.setattr(bounded, "SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(TemplateTooLongError, match=r"more than 0 s for a greeting: it is broken or hostile"):
        Template(byte_level(), bomb + PLAIN)
    assert time.monotonic() - started < 30


def test_one_that_waits_for_the_rows_is_stopped_at_the_first(monkeypatch):
    template = Template(byte_level(), "{% if messages|length > 5 %}" + LOOP + "{% endif %}" + PLAIN)
    monkeypatch.setattr(bounded, "SECONDS", 0.5)
    long = Row("rows.jsonl:7", messages=[*(ROW.messages or [])] * 4)
    started = time.monotonic()
    with pytest.raises(TemplateTooLongError, match=r"the row rows\.jsonl:7"):
        template.encode_batch([ROW, long, long, long], 64)
    for ask in (template.render, template.prompt_ids):
        with pytest.raises(TemplateTooLongError, match="a conversation"):
            ask(long.messages or [])
    assert time.monotonic() - started < 60


def test_one_that_grows_is_stopped(monkeypatch):
    monkeypatch.setattr(bounded, "MOST_GROWTH", 100 << 20)
    with pytest.raises(TemplateTooLongError, match="more than 0 GB"):
        Template(byte_level(), GROWTH + PLAIN)


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_nothing_is_left_behind():
    """After many stopped and many finished renderings no exception arrives late, and none is watched."""
    watched = bounded._watch._renderings
    template = Template(byte_level(), PLAIN)
    errors: list[BaseException] = []

    def render() -> None:
        try:
            for _ in range(200):
                template.encode_batch([ROW], 64)
        except BaseException as error:
            errors.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "SECONDS", 0.0)
        patch.setattr(bounded, "POLL", 0.001)
        stopped = 0
        for length in range(200):  # near the end as well as within
            try:
                bounded.bounded(partial(spin, 0.0002 * (length % 50)), "a test")
            except TemplateTooLongError:
                stopped += 1
        assert 0 < stopped < 200
    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.05)
    assert not errors and not watched


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ dict(a=1)|attr('__class__') }}",
        "{{ '%1000000000000d' % 1 }}",
        "{{ 'a' * 10 ** 30 }}",
    ],
)
def test_the_sandbox_keeps_a_template_in(escape):
    try:
        text = Template(byte_level(), escape + PLAIN).render(ROW.messages or [])
    except DataError:
        return
    assert not any(word in text for word in ("<class", "root:", "uid=", "module", "Environment", "__builtins__"))
