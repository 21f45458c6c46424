"""llmembed: run a frozen language model once over a data set, then fit classifiers from disk in seconds."""

__version__ = "0.1.0"
