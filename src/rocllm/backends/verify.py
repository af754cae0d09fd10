"""Compare what was chosen with what the child says it uses. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rocllm.devices import Device
from rocllm.errors import OffloadFailed
from rocllm.server import LoadReport


def verify_devices(
    chosen: Sequence[Device], n_gpu_layers: int, report: LoadReport
) -> tuple[str, ...]:
    """Warnings, each naming what was chosen and what is used.

    Raises `OffloadFailed` when a GPU was chosen and nothing is on a GPU.
    """
    used = report.devices
    if not chosen:
        names = ", ".join(f"{device.name} ({device.description})" for device in used)
        return (f"the CPU was chosen, the server uses {names}",) if used else ()
    wanted = ", ".join(f"{device.name} ({device.pci_address})" for device in chosen)
    if not used or (report.offloaded_layers == 0 and n_gpu_layers != 0):
        raise OffloadFailed(
            f"{wanted} was chosen, and the server put nothing on a GPU",
            why="the server was built without ROCm, or its ROCm libraries do not find the GPU"
            if not used
            else f"it reports {report.offloaded_layers} of {report.total_layers} layers offloaded",
            remedy="see `llama-server --list-devices`; to run on the CPU, ask for it: device='cpu'",
        )
    addresses = [device.pci_address for device in used]
    expected = [device.pci_address for device in chosen]
    if None in addresses or sorted(map(str, addresses)) == sorted(map(str, expected)):
        return ()
    says = ", ".join(f"{d.name} {d.description} ({d.pci_address})" for d in used)
    return (f"{wanted} was chosen, the server uses {says}",)
