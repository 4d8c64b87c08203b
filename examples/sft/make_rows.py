"""Rows of the demo: customer e-mails in, JSON out, from lorafit's own generator.

    python examples/sft/make_rows.py

Writes `train.jsonl` and `held_out.jsonl`. Names, products and phrasings of the one never occur in the other.
"""

import argparse
from pathlib import Path

from lorafit.demo.task import write_demo_data


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent, metavar="DIR")
    parser.add_argument("--train", type=int, default=288, metavar="N", help="e-mails to learn from")
    parser.add_argument("--held-out", type=int, default=64, metavar="N", help="e-mails to measure on")
    arguments = parser.parse_args()
    for file in write_demo_data(arguments.output_dir, train=arguments.train, held_out=arguments.held_out):
        print(file)


if __name__ == "__main__":
    main()
