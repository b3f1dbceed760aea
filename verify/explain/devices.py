"""GPUs by name: what dispatch depends on, without having one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes
    ----------
    name : str
        Its name.
    arch : str
        Architecture that kernels are compiled for.
    multiprocessors : int
        Number of multiprocessors.
    """

    name: str
    arch: str
    multiprocessors: int

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability."""
        major, minor = divmod(int(self.arch.removeprefix("sm_")), 10)
        return major, minor


DEVICES = {
    device.name: device
    for device in (
        Device("a100", "sm_80", 108),
        Device("l40s", "sm_89", 142),
        Device("h20", "sm_90", 78),
        Device("h100-pcie", "sm_90", 114),
        Device("h100", "sm_90", 132),
        Device("h200", "sm_90", 132),
        Device("b200", "sm_100", 148),
        Device("rtx5090", "sm_120", 170),
    )
}
"""Multiprocessors as the vendor's datasheets give them."""
DEFAULT = "h100"


def find_device(text: str | None) -> Device:
    """Return a device by name, one of some number of multiprocessors, or for None the machine's own.

    Parameters
    ----------
    text : str, optional
        A key of `DEVICES`, or a number, which is taken for multiprocessors of an sm_90. None: the current CUDA
        device, `DEFAULT` where there is none.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if text is None:
        return _current() or DEVICES[DEFAULT]
    if text.isdecimal() and int(text) > 0:
        return Device(f"{text} multiprocessors", "sm_90", int(text))
    if text.lower() not in DEVICES:
        raise ValueError(f"device is {text!r}; allowed: {', '.join(DEVICES)}, or a number of multiprocessors")
    return DEVICES[text.lower()]


def _current() -> Device | None:
    import torch

    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(about.name, f"sm_{about.major}{about.minor}", about.multi_processor_count)
