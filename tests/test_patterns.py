"""Regular expressions of others: `re`'s meaning, and an end."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit import patterns
from lorafit.errors import ConfigError

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head", "h.0.attn.c_attn", ""]
USUAL = [
    r".*\.layers\.(\d+)\.(self_attn|mlp)\.(q_proj|down_proj)",
    r"^(?!.*lm_head).*(?:q_proj|c_attn)$",
    r"model\.layers\.[\d]{1,}\.(?:mlp|self_attn)\.(?:(?:q_proj|down_proj))",
    r"(?i).*Q_PROJ",
    r".*?(?:language|layers).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?",
]


@pytest.mark.parametrize("pattern", USUAL)
def test_they_mean_what_they_mean_in_re(pattern):
    for name in NAMES:
        assert bool(patterns.fullmatch(pattern, name)) == bool(re.fullmatch(pattern, name))
        found, theirs = patterns.match(pattern, name), re.match(pattern, name)
        assert (found and (found.span(), found.groups())) == (theirs and (theirs.span(), theirs.groups()))


atoms = st.sampled_from([*"abcq_.", r"\.", r"\d", r"\w", ".", "[a-q]", "[^a]", "(?:ab|a)", "(a|b)", "^", "$", r"\b"])
pieces = st.builds(str.__add__, atoms, st.sampled_from(["", "", "*", "+", "?", "{1,2}", "*?"]))


@given(st.lists(pieces, max_size=6).map("".join), st.text("abcq_.01", max_size=8))
def test_random_ones_mean_what_they_mean_in_re(pattern, name):
    if patterns.problem_of(pattern) is None:
        assert bool(patterns.fullmatch(pattern, name)) == bool(re.fullmatch(pattern, name))


@pytest.mark.parametrize("pattern", [r"(?:a|aa)+$", r"(a|aa)+\1?$", r"(?=(a|aa)+$)x?"])
def test_one_that_takes_hours_is_stopped(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    patterns._bounded.cache_clear()
    started = time.process_time()
    with pytest.raises(ConfigError, match="takes more than"):
        for _ in range(1000):  # each name gets what is left, not the whole again
            patterns.fullmatch(pattern, "a" * 60 + "!")
    assert time.process_time() - started < 5
    patterns._bounded.cache_clear()


def test_what_is_none_is_told():
    for pattern in ("(", "a{99999999999999999999}", "(" * 5000, "a" * (patterns.LONGEST + 1)):
        assert patterns.problem_of(pattern)
        with pytest.raises(ConfigError, match="is not a regular expression"):
            patterns.fullmatch(pattern, "a")
