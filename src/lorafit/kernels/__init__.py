"""Pure functions on tensors; each has a plain `_reference` beside it that the tests hold it to."""
