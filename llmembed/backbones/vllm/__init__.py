"""The vLLM engine: a frozen LLM on one or several GPUs, pooled on the device.

`engine.py` runs in llmembed's process and speaks to vLLM; `plugin.py`, `models.py` and `pooler.py` run in vLLM's own
processes, which find them through the entry point `vllm.general_plugins`.
"""
