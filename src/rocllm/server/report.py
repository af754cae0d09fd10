"""What the child said about itself while it loaded: devices, buffers, slots. Pure.

The lines are those of llama-server at `-lv 4` (b11434 and b11549).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

_PREFIX = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [IWED] ")
_DEVICE = re.compile(r"using device (\S+) \((.*?)\)(?: \(([0-9a-f:.]+|unknown id)\))? - ")
_BUFFER = re.compile(
    r"^\S+:\s+(\S+)\s+(model|KV|RS|output|compute) buffer size =\s+(\d+(?:\.\d+)?) MiB"
)
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_SLOTS = re.compile(r"n_slots = (\d+)(?:, n_ctx_slot = (\d+))?")
_SLOT_CTX = re.compile(r"new slot,? n_ctx(?:_slot)? = (\d+)")
_LOADING = "load_tensors: loading model tensors"
# What is loaded after the model says so before its buffers (common/speculative.cpp, clip.cpp).
_DRAFT = "loading draft model '"
_PROJECTOR = re.compile(r"CLIP using (\S+) backend")
_PROJECTOR_SIZE = re.compile(r"^load_hparams: model size:\s+(\d+(?:\.\d+)?) MiB")
_DRAFT_UNUSED = re.compile(
    r"failed to initialize speculative decoding context: (.+)"
    r"|(speculative decoding not supported by this context)"
)


@dataclass(frozen=True, slots=True)
class UsedDevice:
    """A GPU that the child says it uses: `ROCm0`, its description and PCI address."""

    name: str
    description: str
    pci_address: str | None


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that the child allocated, in bytes (the log rounds to 0.01 MiB).

    device: llama.cpp's name, such as `ROCm0`, `CPU` or `CPU_Mapped`.
    kind: `model`, `KV`, `RS` (recurrent state), `output` or `compute`. of: whose it is.
    """

    device: str
    kind: str
    size: int
    of: Literal["model", "draft", "projector"] = "model"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What the child said while loading; `None` and empty where it said nothing.

    draft_problem: why a draft model that was loaded is not used.
    """

    devices: tuple[UsedDevice, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    offloaded_layers: int | None = None
    total_layers: int | None = None
    n_slots: int | None = None
    n_ctx_slot: int | None = None
    draft_problem: str | None = None


@dataclass(slots=True)
class LoadReportBuilder:
    """Feed it the child's lines in order, then take the `report`."""

    devices: dict[str, UsedDevice] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    offloaded: tuple[int, int] | None = None
    slots: int | None = None
    slot_ctx: int | None = None
    of: Literal["model", "draft", "projector"] = "model"
    projector_device: str = ""
    draft_problem: str | None = None
    # How much of the model is loaded, from 0 to 1; `None`: the log does not say.
    loaded: float | None = None

    def feed(self, line: str) -> None:
        """Take one line of the log."""
        text = _PREFIX.sub("", line)
        if text.startswith(_LOADING):
            # The fit phase loads without allocating first; only what follows the last is real.
            self.buffers = [one for one in self.buffers if one.of != self.of]
        elif _DRAFT in text:
            self.of = "draft"
        elif match := _PROJECTOR.search(text):
            self.of, self.projector_device = "projector", match[1]
        elif match := _PROJECTOR_SIZE.match(text):
            self._add(self.projector_device, "model", match[1])
        elif match := _DEVICE.search(text):
            name, description, address = match.groups()
            known = address if address and ":" in address else None
            self.devices[name] = UsedDevice(name, description, known)
        elif match := _BUFFER.match(text):
            self._add(match[1], match[2], match[3])
        elif match := _OFFLOADED.search(text):
            if self.of == "model":
                self.offloaded = int(match[1]), int(match[2])
        elif match := _DRAFT_UNUSED.search(text):
            self.draft_problem = match[1] or match[2]
        elif match := _SLOTS.search(text):
            self.slots = int(match[1])
            self.slot_ctx = int(match[2]) if match[2] else self.slot_ctx
        elif match := _SLOT_CTX.search(text):
            self.slot_ctx = int(match[1])

    def _add(self, device: str, kind: str, mebibytes: str) -> None:
        self.buffers.append(Buffer(device, kind, round(float(mebibytes) * 2**20), self.of))

    def report(self) -> LoadReport:
        """What was said so far."""
        layers, total = self.offloaded or (None, None)
        return LoadReport(
            devices=tuple(self.devices.values()),
            buffers=tuple(self.buffers),
            offloaded_layers=layers,
            total_layers=total,
            n_slots=self.slots,
            n_ctx_slot=self.slot_ctx,
            draft_problem=self.draft_problem,
        )
