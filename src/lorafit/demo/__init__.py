"""`lorafit demo`: messy customer e-mails to JSON, a task whose gain anyone can see."""

from .task import DEMO_RECIPE, HELD_OUT_ROWS, SEED, TRAIN_ROWS, write_demo_data

__all__ = ["DEMO_RECIPE", "HELD_OUT_ROWS", "SEED", "TRAIN_ROWS", "write_demo_data"]
