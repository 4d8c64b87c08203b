"""The run directory: the only thing that passes between lorafit's verbs.

`directory` knows its files, `loading` the models they make, `lock` keeps two processes apart. No torch, no
transformers until a model is loaded.
"""

from lorafit.run.directory import LABELS_FILE, SINGLE, STATES, TEMPLATE_FILE, free_directory, present_versions
from lorafit.run.loading import Run

__all__ = ["LABELS_FILE", "SINGLE", "STATES", "TEMPLATE_FILE", "Run", "free_directory", "present_versions"]
