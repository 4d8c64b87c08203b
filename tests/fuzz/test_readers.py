"""Hostile files: each reader takes them or refuses them with a LorafitError (100,000 each: `benchmarks/fuzz.py`)."""

import time
from pathlib import Path

import pytest
from hostile import TARGETS
from hypothesis import HealthCheck, given, settings

from lorafit.errors import LorafitError

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(file for file in CORPUS.rglob("*") if file.is_file())
IGNORED = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning", "SyntaxWarning")]
pytestmark = IGNORED  # a hostile file may warn; what it may not is break


def read(name: str, suffix: str, content: bytes) -> None:
    started = time.perf_counter()
    try:
        TARGETS[name].read(content, suffix)
    except LorafitError as error:
        assert str(error) and len(str(error)) < 40_000
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_read_or_refused(name: str):
    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(TARGETS[name].contents())
    def one(drawn: tuple[str, bytes]) -> None:
        read(name, *drawn)

    one()


@pytest.mark.parametrize("file", KEPT, ids=lambda file: str(file.relative_to(CORPUS)))
def test_what_once_broke_a_reader(file: Path):
    read(file.parent.name, file.suffix, file.read_bytes())


def test_the_corpus_is_there():
    assert {file.parent.name for file in KEPT} <= TARGETS.keys() and len(KEPT) >= 8
