"""What vLLM loads in each of its processes: the names of our models, without importing them.

`MODELS` is also the list of what this engine can run, by `model_type` of config.json.
"""

from llmembed.parent import die_with_parent

MODELS = {
    "bert": "Bert",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "roberta": "Roberta",
}


def architecture(model_type: str) -> str:
    """Name the class of `models.py` that runs a model type, as vLLM's registry knows it."""
    return f"LLMEmbed{MODELS[model_type]}"


def register() -> None:
    """Add our models to vLLM's registry (entry point `vllm.general_plugins`)."""
    from vllm import ModelRegistry

    for model_type in MODELS:
        name = architecture(model_type)
        # A string keeps CUDA and the model's module out of processes that only read the registry.
        ModelRegistry.register_model(name, f"llmembed.backbones.vllm.models:{name}")
    # vLLM's engine process outlives a killed parent, and would keep the memory of its GPU.
    die_with_parent()
