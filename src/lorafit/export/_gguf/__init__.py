"""GGUF files: names, metadata, tokenizer and weights as llama.cpp reads them."""
