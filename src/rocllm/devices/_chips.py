"""What is fixed by silicon: gfx names, which chips are integrated, what PCI ids are called.

Sources: the kernel's amdgpu_discovery.c (its list of APUs) and kfd_device.c of Linux 6.12 and 5.10,
LLVM's AMDGPU processor table, the PCI ID database of 2023.04.11.
"""

from __future__ import annotations

# Chips that exist only inside a processor.
INTEGRATED = frozenset(
    {"gfx801", "gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036"}
    | {"gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"}
)

# Chips that exist only on cards. gfx942 is in neither set: the MI300A is an APU.
DISCRETE = frozenset(
    {"gfx701", "gfx802", "gfx803", "gfx900", "gfx904", "gfx906", "gfx908", "gfx90a", "gfx950"}
    | {"gfx1010", "gfx1011", "gfx1012", "gfx1030", "gfx1031", "gfx1032", "gfx1034"}
    | {"gfx1100", "gfx1101", "gfx1102", "gfx1200", "gfx1201", "gfx1250"}
)

# PCI device ids of gfx942: is it the APU?
GFX942_INTEGRATED = {0x74A0: True, 0x74A1: False, 0x74A2: False, 0x74A5: False}

# PCI device ids of GCN 1, which amdgpu may drive and KFD never took: Oland, Hainan, Tahiti,
# Pitcairn, Verde (amdgpu_drv.c of Linux 6.12).
GCN_1 = ((0x6600, 0x6631), (0x6660, 0x666F), (0x6780, 0x679F), (0x6800, 0x683F))

# The `name` of a KFD node on kernels that do not print gfx_target_version yet (before 5.15).
GFX_BY_ASIC = {
    "hawaii": "gfx701",
    "carrizo": "gfx801",
    "tonga": "gfx802",
    "fiji": "gfx803",
    "polaris10": "gfx803",
    "polaris11": "gfx803",
    "polaris12": "gfx803",
    "vegam": "gfx803",
    "vega10": "gfx900",
    "raven": "gfx902",
    "vega12": "gfx904",
    "vega20": "gfx906",
    "arcturus": "gfx908",
    "aldebaran": "gfx90a",
    "renoir": "gfx90c",
    "navi10": "gfx1010",
    "navi12": "gfx1011",
    "navi14": "gfx1012",
    "sienna_cichlid": "gfx1030",
    "navy_flounder": "gfx1031",
    "dimgrey_cavefish": "gfx1032",
    "vangogh": "gfx1033",
    "beige_goby": "gfx1034",
    "yellow_carp": "gfx1035",
}

# PCI device id: gfx name and what the chip is sold as. It names cards; where KFD says what a chip
# is, KFD is believed.
CHIPS = {
    0x67DF: ("gfx803", "Radeon RX 470/480/570/580/590"),
    0x6860: ("gfx900", "Radeon Instinct MI25"),
    0x687F: ("gfx900", "Radeon RX Vega 56/64"),
    0x15D8: ("gfx902", "Radeon Vega of Ryzen 3000"),
    0x15DD: ("gfx902", "Radeon Vega of Ryzen 2000"),
    0x66A1: ("gfx906", "Instinct MI50/MI60"),
    0x66AF: ("gfx906", "Radeon VII"),
    0x738C: ("gfx908", "Instinct MI100"),
    0x7408: ("gfx90a", "Instinct MI250X"),
    0x740C: ("gfx90a", "Instinct MI250/MI250X"),
    0x740F: ("gfx90a", "Instinct MI210"),
    0x1636: ("gfx90c", "Radeon Vega of Ryzen 4000"),
    0x1638: ("gfx90c", "Radeon Vega of Ryzen 5000"),
    0x164C: ("gfx90c", "Radeon Vega of Ryzen 5000"),
    0x74A0: ("gfx942", "Instinct MI300A"),
    0x74A1: ("gfx942", "Instinct MI300X"),
    0x74A2: ("gfx942", "Instinct MI308X"),
    0x74A5: ("gfx942", "Instinct MI325X"),
    0x731F: ("gfx1010", "Radeon RX 5600/5700"),
    0x7362: ("gfx1011", "Radeon Pro V520"),
    0x7340: ("gfx1012", "Radeon RX 5300/5500"),
    0x13FE: ("gfx1013", "BC-250"),
    0x73A3: ("gfx1030", "Radeon PRO W6800"),
    0x73A5: ("gfx1030", "Radeon RX 6950 XT"),
    0x73BF: ("gfx1030", "Radeon RX 6800/6900 XT"),
    0x73DF: ("gfx1031", "Radeon RX 6700/6750 XT"),
    0x73EF: ("gfx1032", "Radeon RX 6650 XT"),
    0x73FF: ("gfx1032", "Radeon RX 6600/6600 XT"),
    0x163F: ("gfx1033", "Radeon of the Steam Deck"),
    0x743F: ("gfx1034", "Radeon RX 6400/6500 XT"),
    0x1681: ("gfx1035", "Radeon 660M/680M"),
    0x13C0: ("gfx1036", "Radeon of Ryzen 9000"),
    0x1506: ("gfx1036", "Radeon 610M"),
    0x164E: ("gfx1036", "Radeon of Ryzen 7000"),
    0x744B: ("gfx1100", "Radeon PRO W7900"),
    0x744C: ("gfx1100", "Radeon RX 7900 XT/XTX"),
    0x747E: ("gfx1101", "Radeon RX 7700/7800 XT"),
    0x7480: ("gfx1102", "Radeon RX 7600"),
    0x15BF: ("gfx1103", "Radeon 740M/760M/780M"),
    0x15C8: ("gfx1103", "Radeon 740M"),
    0x1900: ("gfx1103", "Radeon 760M/780M"),
    0x1901: ("gfx1103", "Radeon 740M"),
    0x150E: ("gfx1150", "Radeon 880M/890M"),
    0x1586: ("gfx1151", "Radeon 8050S/8060S"),
    0x1114: ("gfx1152", "Radeon 840M/860M"),
    0x1902: ("gfx1152", "Radeon 840M/860M"),
    0x7590: ("gfx1200", "Radeon RX 9060/9060 XT"),
    0x7550: ("gfx1201", "Radeon RX 9070/9070 XT"),
    0x7551: ("gfx1201", "Radeon AI PRO R9700"),
}


def gfx_name(version: int) -> str | None:
    """KFD's `gfx_target_version` as ROCm writes it; minor and stepping are hexadecimal digits.

    >>> gfx_name(110501), gfx_name(90010)
    ('gfx1151', 'gfx90a')
    """
    major, minor, stepping = version // 10000, version // 100 % 100, version % 100
    if not 0 < major < 100 or minor > 15 or stepping > 15:
        return None
    return f"gfx{major}{minor:x}{stepping:x}"


def gfx_of(device_id: int | None) -> str | None:
    """The gfx name of a PCI device id, where it is in `CHIPS`."""
    return CHIPS[device_id][0] if device_id in CHIPS else None
