"""The proof of every export: loaded in its target, it says what the tuned model says on held-out prompts."""
