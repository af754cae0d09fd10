"""What a GPU is called."""

from __future__ import annotations

from collections.abc import Mapping

from rocllm.devices._chips import CHIPS
from rocllm.devices._drm import Card
from rocllm.devices._sysfs import Tree, hexadecimal

# libdrm's table of marketing names, by PCI device id and revision: `744C,\tC8,\tAMD Radeon …`.
_AMDGPU_IDS = ("usr/share/libdrm/amdgpu.ids", "opt/amdgpu/share/libdrm/amdgpu.ids")


def read_amdgpu_ids(tree: Tree) -> Mapping[tuple[int, int], str]:
    """Names by device id and revision; empty when the table is not installed."""
    text = next((text for path in _AMDGPU_IDS if (text := tree.text(path))), "")
    names: dict[tuple[int, int], str] = {}
    for line in text.split("\n"):
        device, _, rest = line.partition(",")
        revision, _, name = rest.partition(",")
        key = hexadecimal(device.strip()), hexadecimal(revision.strip())
        if key[0] is not None and key[1] is not None and name.strip():
            names[key[0], key[1]] = name.strip()
    return names


def device_name(
    device_id: int | None,
    card: Card | None,
    gfx_target: str | None,
    names: Mapping[tuple[int, int], str],
) -> str:
    """The name on the board, in libdrm's table, in ours, or a description."""
    if card is not None and card.product_name:
        return card.product_name.removeprefix("AMD ")
    if card is not None and device_id is not None and card.revision is not None:
        name = names.get((device_id, card.revision))
        if name:
            return name.removeprefix("AMD ")
    if device_id in CHIPS:
        return CHIPS[device_id][1]
    words = ("AMD", gfx_target, "GPU", device_id is not None and f"{device_id:#06x}")
    return " ".join(word for word in words if word)
