"""Rows of the E2E task (Novikova et al. 2017) for lorafit: a meaning representation in, a sentence about it out.

    python examples/e2e/make_rows.py e2e_valid.txt

Takes lines `name : Alimentum | area : city centre||In the city centre there is Alimentum .` and writes `train.jsonl`
and `held_out.jsonl`. Each representation has several references, which stay together: none that is held out is trained
on, in whatever order it names its attributes.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

INSTRUCTION = "Describe this place in a sentence or two.\n\n"


def representations(text: str, name: str) -> list[tuple[str, list[str]]]:
    """Each representation with its references, in the order of the file; the same attributes in any order are one."""
    written: dict[frozenset[str], str] = {}
    references: dict[frozenset[str], list[str]] = defaultdict(list)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        representation, bars, reference = (part.strip() for part in line.partition("||"))
        if not (representation and bars and reference):
            sys.exit(f"{name}:{number} is not `representation||reference`: {line[:80]!r}")
        attributes = frozenset(" ".join(attribute.split()) for attribute in representation.split("|"))
        written.setdefault(attributes, representation)
        references[attributes].append(reference)
    return [(written[attributes], said) for attributes, said in references.items()]


def main() -> None:
    """Read, split, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="lines of representation||reference")
    parser.add_argument("--held-out", type=int, default=60, metavar="N", help="representations to hold out")
    parser.add_argument("--seed", type=int, default=42, help="of the choice")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent, metavar="DIR")
    arguments = parser.parse_args()

    meanings = representations(arguments.file.read_text(encoding="utf-8"), arguments.file.name)
    if not 0 < arguments.held_out < len(meanings):
        sys.exit(f"--held-out must be between 1 and {len(meanings) - 1}: the file has {len(meanings)} representations")
    held_out = set(random.Random(arguments.seed).sample(range(len(meanings)), arguments.held_out))
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, wanted in ("train.jsonl", False), ("held_out.jsonl", True):
        chosen = [meaning for index, meaning in enumerate(meanings) if (index in held_out) is wanted]
        rows = [
            {"prompt": INSTRUCTION + given, "completion": said} for given, references in chosen for said in references
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (arguments.output_dir / name).write_text("".join(lines), encoding="utf-8")
        print(f"{arguments.output_dir / name}: {len(rows)} references of {len(chosen)} representations")


if __name__ == "__main__":
    main()
