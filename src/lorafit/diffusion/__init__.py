"""Text to image: LoRA for diffusion models, on diffusers. Imported where a run's task is `text_to_image` alone."""
