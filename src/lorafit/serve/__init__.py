"""OpenAI's API over one base model and many adapters, whose requests share each step of generation."""
