"""The command line: `main` and one file a verb, each of which imports what is heavy when it runs."""
