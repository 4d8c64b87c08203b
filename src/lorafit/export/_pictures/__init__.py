"""What the exports of text-to-image runs share: the comparison with the tuned model, and the merged pipeline."""
