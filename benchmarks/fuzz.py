"""Hostile files for every reader: how many were read, how many refused, and what else came out (nothing should).

    pip install -e '.[test]'
    python benchmarks/fuzz.py                        # 100,000 inputs for each of seven readers
    python benchmarks/fuzz.py --only recipe --inputs 2000 --keep

What breaks a reader is shown and, with --keep, written to tests/fuzz/corpus, where the tests replay it.
"""

import argparse
import collections
import hashlib
import json
import logging
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from peers import machine

from lorafit.errors import LorafitError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "fuzz"))
from hostile import TARGETS, variants  # noqa: E402

RESULTS, CORPUS = HERE / "results" / "fuzz.json", HERE.parent / "tests" / "fuzz" / "corpus"
ROUND = 2_000  # draws of one seed: hypothesis remembers what it has drawn
VARIANTS = 4  # of each draw, with a few bytes changed
SLOWEST = 10.0  # seconds an input may take


def fuzz(name: str, inputs: int, keep: bool) -> dict[str, Any]:
    """Try `inputs` inputs on one reader."""
    target = TARGETS[name]
    count: collections.Counter[str] = collections.Counter()
    defects: dict[str, int] = {}
    slowest = 0.0
    contents = target.contents()

    def several(drawn: tuple[str, bytes]) -> None:
        suffix, content = drawn
        for variant in variants(content, VARIANTS):
            one(suffix, variant)

    def one(suffix: str, content: bytes) -> None:
        nonlocal slowest
        count["inputs"] += 1
        started = time.perf_counter()
        try:
            target.read(content, suffix)
            count["read"] += 1
        except LorafitError:
            count["refused"] += 1
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            if what not in defects:
                print(f"{name}{suffix} {content[:300]!r}\n{_end_of(error)}", flush=True)
                _keep(name, suffix, content, keep)
            defects[what] = defects.get(what, 0) + 1
        took = time.perf_counter() - started
        if took > SLOWEST:
            what = f"{took:.0f} s"
            defects[what] = defects.get(what, 0) + 1
            _keep(name, suffix, content, keep)
        slowest = max(slowest, took)

    started = time.perf_counter()
    number = 0
    while count["inputs"] < inputs:
        checks = list(HealthCheck)
        most = min(ROUND, -(-(inputs - count["inputs"]) // (1 + VARIANTS)))
        run = settings(
            max_examples=most, database=None, deadline=None, suppress_health_check=checks, phases=[Phase.generate]
        )(given(contents)(several))
        seed(number)(run)()
        number += 1
    return {
        **count,
        "other_than_a_lorafit_error": defects,
        "slowest_seconds": round(slowest, 3),
        "seconds": round(time.perf_counter() - started),
        "seeds": number,
    }


def _end_of(error: Exception) -> str:
    return "".join([*traceback.format_tb(error.__traceback__)[-5:], *traceback.format_exception_only(error)])


def _keep(name: str, suffix: str, content: bytes, keep: bool) -> None:
    if keep:
        place = CORPUS / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{hashlib.sha256(content).hexdigest()[:12]}{suffix}").write_bytes(content)


def main() -> None:
    """Fuzz, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--only", choices=sorted(TARGETS), action="append")
    parser.add_argument("--keep", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    for name in chosen.only or TARGETS:
        result = fuzz(name, chosen.inputs, chosen.keep)
        print(name, json.dumps(result), flush=True)
        if chosen.inputs >= 100_000:
            found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            found |= {"machine": machine(), "readers": {**found.get("readers", {}), name: result}}
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
