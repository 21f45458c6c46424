"""What a model runs on: the engine, and a device of this process or GPUs of processes of their own.

In: what the user chose. Out: names of GPUs, options of `load_backbone`. Knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmembed.choices import EngineName
from llmembed.devices import find_device, group_gpus
from llmembed.errors import UsageError


@dataclass(frozen=True)
class Resources:
    """What a model runs on; nothing of it changes the numbers beyond rounding.

    Attributes:
        engine: `vllm` or `transformers`; None chooses.
        device: device of the transformers engine; None takes a GPU where there is one.
        gpus: `all`, or numbers such as `0,1`: one process for each of them. None runs in this process.
        tensor_parallel: number of GPUs that share one model (vLLM alone).
    """

    engine: EngineName | None = None
    device: str | None = None
    gpus: str | None = None
    tensor_parallel: int = 1

    @property
    def loading(self) -> dict[str, Any]:
        """Return the options of `load_backbone`."""
        return {"engine": self.engine, "device": self.device, "tensor_parallel": self.tensor_parallel}

    def check(self) -> None:
        """Refuse a device that cannot be used, before anything is loaded.

        Raises:
            UsageError: there is no such device here.
        """
        if self.device is not None:
            find_device(self.device)

    def groups(self, visible: Sequence[str]) -> list[str]:
        """Return the GPUs of each process, of those that are visible.

        Raises:
            UsageError: no such GPUs, or also a device.
        """
        if self.gpus is not None and self.device is not None:
            raise UsageError(f"`gpus={self.gpus!r}` and `device={self.device!r}`: name one of them.")
        return [] if self.gpus is None else group_gpus(self.gpus, visible, self.tensor_parallel)

    def in_use(self, visible: Sequence[str]) -> list[str]:
        """Return all GPUs that take part, of those that are visible.

        Raises:
            UsageError: there are not so many.
        """
        if self.gpus is not None:
            return [gpu for group in self.groups(visible) for gpu in group.split(",")]
        if 1 < self.tensor_parallel > len(visible):
            raise UsageError(f"`tensor_parallel={self.tensor_parallel}`: {len(visible)} GPUs can be used here.")
        kind, _, number = (self.device or "cuda").partition(":")
        first = int(number) if number.isdecimal() else 0
        return list(visible[first : first + self.tensor_parallel]) if kind == "cuda" else []


CHOOSE = Resources()
