"""The weights of a tuned model, merged: from the base model's files tensor by tensor, or whole in memory."""
