"""`rocllm devices`: the GPUs, which one would be used, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rocllm.cli._arguments import require_machine
from rocllm.devices import Choice, Device, Machine, Problem, choose_devices, discover_devices
from rocllm.units import format_bytes

HELP = "Show the GPUs, which one would be used, and why."

# The fields of a device in the JSON, which is what others build on; the rest may change.
_FIELDS = (
    "kfd_node",
    "ordinal",
    "gfx_target",
    "name",
    "pci_address",
    "device_id",
    "uuid",
    "render_minor",
    "integrated",
    "integrated_because",
    "vram_total",
    "usable_memory",
    "used_memory",
    "asleep",
)


def devices(
    root: Annotated[
        Path,
        typer.Option(help="Folder with another machine's /sys and /dev, as of a bug report."),
    ] = Path("/"),
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the GPUs, which one would be used, and why."""
    require_machine(root)
    machine = discover_devices(root, os.environ)
    choice = choose_devices(machine)
    if json_output:
        typer.echo(json.dumps(_as_json(machine, choice), indent=2))
    else:
        _print(Console(highlight=False), machine, choice)


def _as_json(machine: Machine, choice: Choice) -> dict[str, Any]:
    return {
        "devices": [
            {
                **{field: getattr(device, field) for field in _FIELDS},
                "problems": [str(problem) for problem in device.problems],
            }
            for device in machine.devices
        ],
        "chosen": [device.pci_address for device in choice.devices],
        "because": list(choice.because),
        "environment": choice.environment,
        "problems": [str(problem) for problem in machine.problems],
        "hidden": machine.hidden,
        "wsl": machine.wsl,
        "other_cards": [
            {"pci_address": card.pci_address, "device_id": card.device_id, "driver": card.driver}
            for card in machine.other_cards
        ],
    }


def _print(console: Console, machine: Machine, choice: Choice) -> None:
    if machine.devices:
        console.print(_table(machine, choice))
    names = ", ".join(device.label for device in choice.devices) or "the CPU"
    console.print(Text(f"chosen: {names}"), soft_wrap=True)
    for reason in choice.because:
        console.print(Text(f"because {reason}"), soft_wrap=True)
    if choice.devices:
        mask = " ".join(f"{name}={value}" for name, value in choice.environment.items() if value)
        console.print(Text(f"llama-server runs with {mask}"), soft_wrap=True)
    for where, problem in _problems(machine):
        console.print(Text(f"problem: {where}{problem.what}", style="yellow"), soft_wrap=True)
        if problem.remedy:
            console.print(Text(f"  remedy: {problem.remedy}"), soft_wrap=True)


def _problems(machine: Machine) -> Iterator[tuple[str, Problem]]:
    yield from (("", problem) for problem in machine.problems)
    for device in machine.devices:
        yield from ((f"{device.label}: ", problem) for problem in device.problems)


def _table(machine: Machine, choice: Choice) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("PCI address", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("gfx", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("used", justify="right", no_wrap=True)
    for device in machine.devices:
        style = "bold" if device in choice.devices else ""
        table.add_row(*map(Text, _row(device)), style=style)
    return table


def _row(device: Device) -> tuple[str, ...]:
    usable, used = (
        "-" if size is None else format_bytes(size)
        for size in (device.usable_memory, device.used_memory)
    )
    return (
        "-" if device.ordinal is None else str(device.ordinal),
        device.pci_address or "-",
        device.name + (" (asleep)" if device.asleep else ""),
        device.gfx_target or "-",
        "integrated" if device.integrated else "discrete",
        usable,
        used,
    )
