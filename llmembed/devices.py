"""Devices: the name of a device, or none -> the device that torch computes on, tried.

torch is imported when it is asked for. Knows no model.
"""

from llmembed.errors import UsageError


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
        raise UsageError(f"--device {chosen} cannot be used here ({reason}); use cpu, or leave it out.") from error
    return chosen
