"""Rows of TREC's questions (Li & Roth 2002) for lorafit: a question in, what kind of answer it asks for out.

    python examples/classification/make_rows.py trec.train trec.test

Takes lines `HUM:ind Who wrote Hamlet ?` and writes `train.jsonl` and `test.jsonl` with the coarse class, one of six.
"""

import argparse
import json
import sys
from pathlib import Path


def rows_of(file: Path) -> list[dict[str, str]]:
    """Text and class of each line."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="latin-1").splitlines(), 1):
        kind, space, text = line.partition(" ")
        coarse, colon, _ = kind.partition(":")
        if not (coarse and colon and space and text.strip()):
            sys.exit(f"{file}:{number} is not `CLASS:fine question`: {line[:80]!r}")
        rows.append({"text": text.strip(), "label": coarse})
    return rows


def main() -> None:
    """Read and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="lines of CLASS:fine question")
    parser.add_argument("test", type=Path, help="more of them, to measure on")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent, metavar="DIR")
    arguments = parser.parse_args()

    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, file in ("train.jsonl", arguments.train), ("test.jsonl", arguments.test):
        rows = rows_of(file)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (arguments.output_dir / name).write_text("".join(lines), encoding="utf-8")
        print(f"{arguments.output_dir / name}: {len(rows)} questions of {len({row['label'] for row in rows})} classes")


if __name__ == "__main__":
    main()
