"""Devices: the one that torch computes on, the GPUs here, what these can do at most and what they use.

In: the name of a device, or none, or of GPUs. Out: a device that was tried, groups of GPUs, matrix rate and energy.
Without an NVIDIA driver there are no GPUs that could be asked, although torch may use one (ROCm, Jetson, some
containers): then nothing is measured. torch is imported when it is asked for. Knows no model.
"""

import os
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import pynvml

from llmembed.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

# Products of matrices this large run at the full rate of any card, and take 0.4 GB.
MATRIX = 8192


def find_device(name: str | None) -> str:
    """Return the device of a name, or where there is none a GPU if torch can use one, else the CPU.

    Raises:
        UsageError: torch has no such device, or cannot use it here.
    """
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(chosen)
        # On it every operation succeeds and nothing is computed.
        if device.type == "meta":
            raise ValueError("it holds no values")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        # The first sentence: some of torch's reasons are a page.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise UsageError(f"`device={chosen!r}` cannot be used here ({reason}); use cpu, or leave it out.") from error
    return chosen


def visible_gpus() -> list[str]:
    """List the GPUs that CUDA may use, as CUDA_VISIBLE_DEVICES names them: numbers, or UUIDs."""
    # CUDA would otherwise put the fastest card first, and NVML the first slot.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
        # CUDA reads the list up to the first that is not there, such as -1.
        return list(takewhile(lambda gpu: not gpu.startswith("-"), named))
    return [str(gpu) for gpu in range(count)]


def group_gpus(chosen: str, visible: Sequence[str], tensor_parallel: int = 1) -> list[str]:
    """Turn `all` or numbers such as `0,1` into groups of `tensor_parallel` GPUs, each as CUDA_VISIBLE_DEVICES.

    Raises:
        UsageError: no such GPU, or not a multiple of the group's size.
    """
    try:
        numbers = list(range(len(visible))) if chosen == "all" else [int(gpu) for gpu in chosen.split(",")]
    except ValueError as error:
        raise UsageError(f"`gpus={chosen!r}`: expected all, or numbers with commas such as 0,1.") from error
    if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(len(visible))):
        raise UsageError(f"`gpus={chosen!r}`: {len(visible)} GPUs can be used here; name some of them once, from 0 on.")
    if len(numbers) % tensor_parallel:
        raise UsageError(
            f"`gpus={chosen!r}` and `tensor_parallel={tensor_parallel}`: {len(numbers)} GPUs make no whole groups."
        )
    gpus = [visible[number] for number in numbers]
    return [",".join(gpus[start : start + tensor_parallel]) for start in range(0, len(gpus), tensor_parallel)]


def energy(gpus: Sequence[str]) -> float | None:
    """Read the energy counters of GPUs, in joules since the driver was loaded; None where a card has none."""
    try:
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(_handle(gpu)) for gpu in gpus) / 1000 if gpus else None
    except pynvml.NVMLError:
        return None


def matrix_rate(gpu: int = 0) -> float | None:
    """Measure the floating-point operations per second of bfloat16 matrix products on a visible GPU.

    None where it has no memory left for the two matrices.
    """
    import torch

    try:
        left, right = (torch.randn(MATRIX, MATRIX, device=f"cuda:{gpu}", dtype=torch.bfloat16) for _ in range(2))
        return max(_rate(left, right) for _ in range(5))
    except torch.OutOfMemoryError:
        return None


class Meter:
    """Measures what GPUs use from its beginning on. What cannot be measured is None: a report never fails a job."""

    def __init__(self, gpus: Sequence[str]) -> None:
        self._gpus = gpus
        self._before = _tried(lambda: energy(gpus))

    def watt_hours(self) -> float | None:
        """Return the energy that the GPUs used, by their own counters."""
        after = _tried(lambda: energy(self._gpus))
        return None if after is None or self._before is None else round((after - self._before) / 3600, 3)

    def utilisation(self, operations_per_second: float) -> float | None:
        """Return the share of the rate at which the GPUs multiply bfloat16 matrices (MFU)."""
        if not self._gpus:
            return None
        rate = _tried(lambda: matrix_rate(visible_gpus().index(self._gpus[0])))
        return None if rate is None else round(operations_per_second / (rate * len(self._gpus)), 4)


def _tried(measure: Callable[[], float | None]) -> float | None:
    try:
        return measure()
    except Exception:
        # Drivers fail in ways that no list would hold, and what they were asked for is worth no embedding.
        return None


def _rate(left: "Tensor", right: "Tensor") -> float:
    import torch

    torch.cuda.synchronize(left.device)
    start = time.perf_counter()
    for _ in range(5):
        left @ right
    torch.cuda.synchronize(left.device)
    return 5 * 2 * MATRIX**3 / (time.perf_counter() - start)


def _handle(gpu: str) -> object:
    return pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(gpu)
