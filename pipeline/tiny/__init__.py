"""Small models that come with the package, by the name after `builtin:`."""

BUILTIN = {  # name -> model_type of a checkpoint with random weights
    "tiny": "qwen2_5_vl",
    "tiny-qwen3": "qwen3_vl",
}
