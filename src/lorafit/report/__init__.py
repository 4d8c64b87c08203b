"""The report of a run, and of several beside each other, from the files of their directories. Never torch."""
