"""What vLLM loads in each of its processes: the names of our models, without importing them.

`MODELS` is also the list of what this engine can run, by `model_type` of config.json.
"""

from llmembed.backbones.weights import ModelFiles
from llmembed.parallel import exit_with_parent

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
ENCODERS = ("bert", "roberta")


def architecture(model_type: str) -> str:
    """Return the class of `models.py` that runs a model type, as vLLM's registry knows it."""
    return f"LLMEmbed{MODELS[model_type]}"


def unsuitable(files: ModelFiles) -> str:
    """Return why these models cannot run what the files hold; nothing where they can."""
    config = files.read_config()
    if files.model_type not in MODELS:
        return f"is of the type {files.model_type}; the vllm engine runs {', '.join(MODELS)}."
    # What transformers obeys and vLLM, for our architectures, does not.
    if config.get("use_bidirectional_attention") or (config.get("is_decoder") and files.model_type in ENCODERS):
        return "turns the direction of attention around, which the vllm engine does not."
    if config.get("use_sliding_window") and config.get("max_window_layers") != config.get("num_hidden_layers"):
        return "has a sliding window in some of its layers, which the vllm engine does not."
    return ""


def register() -> None:
    """Add our models to vLLM's registry (entry point `vllm.general_plugins`)."""
    from vllm import ModelRegistry

    for model_type in MODELS:
        name = architecture(model_type)
        # A string keeps CUDA and the model's module out of processes that only read the registry.
        ModelRegistry.register_model(name, f"llmembed.backbones.vllm.models:{name}")
    # vLLM's engine process outlives a killed parent, and would keep the memory of its GPU.
    exit_with_parent()
