"""What PEFT warns of when it combines adapters of the small models, as it should."""

import pytest

COMBINING = [
    pytest.mark.filterwarnings("ignore::lorafit.lora.inject.TiedWeightsWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # by PEFT itself
    pytest.mark.filterwarnings("ignore:The density 1.0 is greater than or equal to 1:UserWarning"),
]
