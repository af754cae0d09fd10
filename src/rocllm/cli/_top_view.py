"""`rocllm top`: a look as text, for a terminal of any width, and for a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rocllm.cli._terminal import one_line
from rocllm.cli._top_look import Look, Model
from rocllm.devices import Device, DeviceSample
from rocllm.units import format_bytes

_BAR = 8
# From this width on there is room for more than the essential; below the other one for less.
_WIDE, _NARROW = 110, 72
# Shares of the memory from which the bar is a warning, and an alarm.
_MUCH, _FULL = 0.85, 0.95
# Header, captions, empty lines, main memory, and how many more GPUs there are.
_OTHER_LINES = 7
_MOST_OTHERS = 4
_STATES = {"loading": "loading", "busy": "prompt", "unreachable": "no answer"}


def frame(
    look: Look, console: Console, height: int | None = None, hint: str = ""
) -> RenderableType:
    """Everything that is shown, with a `hint` in the first line.

    height: lines that there are; `None`: as many as are needed.
    """
    remarks = tuple(_remarks(look))
    if remarks:
        remarks = (Text(), *remarks)
    lines = sum(len(remark.wrap(console, console.width)) for remark in remarks)
    others = _OTHER_LINES + len(look.models) + lines
    room = None if height is None else max(1, height - others)
    models = _models(look, console.width) if look.models else Text("no model is running", "dim")
    devices = _devices(look, console, room)
    return Group(_header(look, hint), Text(), devices, *remarks, Text(), models)


def _header(look: Look, hint: str) -> Text:
    devices, models = len(look.samples), len(look.models)
    counts = f"{devices} GPU{'s' * (devices != 1)}, {models} model{'s' * (models != 1)}"
    now = time.strftime("%H:%M:%S", time.localtime(look.time))
    title = ("rocllm top", "bold")
    return _shortened(Text.assemble(title, f"  {now}  {counts}", (f"  {hint}", "dim")))


def _devices(look: Look, console: Console, room: int | None) -> Table:
    shown = look.samples[:room]
    rows = [_device_cells(sample, console.options.ascii_only) for sample in shown]
    if len(shown) < len(look.samples):
        rows.append({"GPU": _shortened(Text(f"and {len(look.samples) - len(shown)} more", "dim"))})
    if look.host.total is not None:
        rows.append(_host_cells(look.host.total, look.host.free, console.options.ascii_only))
    table = Table(box=None, pad_edge=False)
    columns = _columns(console.width)
    for name in columns:
        left = name in ("GPU", "PCI address", "memory")
        table.add_column(
            name.strip(), justify="left" if left else "right", no_wrap=name != "GPU", min_width=1
        )
    for row in rows:
        table.add_row(*(row.get(name, Text()) for name in columns))
    return table


def _columns(width: int) -> tuple[str, ...]:
    """Those of the devices; ` ` is the memory in numbers, beside its bar."""
    if width < _NARROW:
        return ("#", "GPU", " ", "busy", "power", "temp")
    if width < _WIDE:
        return ("#", "GPU", "memory", " ", "busy", "clock", "power", "temp")
    wide = ("#", "GPU", "PCI address", "memory", " ", "busy", "clock", "memory clock")
    return (*wide, "power", "limit", "temp")


def _device_cells(sample: DeviceSample, ascii_only: bool) -> dict[str, Text]:
    device, memory = sample.device, sample.memory
    total, used = memory.total, memory.used
    if memory.pool is None:  # what there is, though ROCm cannot use it
        total, used = memory.vram_total, memory.vram_used
    hot = sample.temperature if sample.temperature is not None else sample.junction_temperature
    return {
        "#": Text("-" if device.ordinal is None else str(device.ordinal)),
        "GPU": _shortened(device.name),
        "PCI address": Text(device.pci_address or "-"),
        "memory": _bar(used, total, ascii_only),
        " ": Text(_of(used, total)),
        "busy": _busy(sample),
        "clock": _number(sample.core_clock, "MHz", 1e6),
        "memory clock": _number(sample.memory_clock, "MHz", 1e6),
        "power": _number(sample.power, "W"),
        "limit": _number(sample.power_limit, "W"),
        "temp": _number(hot, "C" if ascii_only else "°C"),
    }


def _host_cells(total: int, free: int | None, ascii_only: bool) -> dict[str, Text]:
    used = None if free is None else max(0, total - free)
    return {
        "GPU": _shortened("main memory"),
        "memory": _bar(used, total, ascii_only),
        " ": Text(_of(used, total)),
    }


def _busy(sample: DeviceSample) -> Text:
    if not sample.present:
        return Text("gone", "red")
    return Text("asleep", "dim") if sample.asleep else _number(sample.busy_percent, "%")


def _bar(used: int | None, total: int | None, ascii_only: bool) -> Text:
    full, empty = ("#", ".") if ascii_only else ("█", "░")
    if used is None or not total:
        return Text(empty * _BAR, "dim")
    share = min(1.0, used / total)
    cells = round(share * _BAR)
    style = "red" if share >= _FULL else "yellow" if share >= _MUCH else "green"
    return Text.assemble((full * cells, style), (empty * (_BAR - cells), "dim"))


def _of(used: int | None, total: int | None) -> str:
    """`8.1/12.0 GiB`: both in the unit of the whole."""
    if total is None:
        return "-" if used is None else format_bytes(used)
    whole = format_bytes(total)
    if used is None:
        return f"?/{whole}"
    number, _, unit = whole.partition(" ")
    scale = total / float(number) if float(number) else 1.0
    return f"{used / scale:.{len(number.partition('.')[2])}f}/{number} {unit}"


def _number(value: float | None, unit: str, scale: float = 1) -> Text:
    return Text("-" if value is None else f"{value / scale:.0f} {unit}")


def _remarks(look: Look) -> Iterator[Text]:
    if not look.samples:
        yield Text("no AMD GPU that the amdgpu driver runs: models run on the CPU")
    for problem in look.machine.problems:
        yield Text(f"problem: {one_line(str(problem))}", "yellow")
    for spill in look.spills:
        yield Text(f"{spill.device.label}: {one_line(str(spill))}", "red")
    ours = {model.server.pid for model in look.models}
    for sample in look.samples:
        others = [
            f"{one_line(use.name)} ({use.pid}) {format_bytes(use.vram)}"
            for use in look.processes
            if use.device == sample.device and use.pid not in ours and use.vram
        ]
        if others:
            rest = len(others) - _MOST_OTHERS
            more = [f"and {rest} more"] if rest > 0 else []
            names = ", ".join(others[:_MOST_OTHERS] + more)
            yield Text(f"other programs on {_short(sample.device)}: {names}", "dim")


def _models(look: Look, width: int) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ["model", "pid", "on", "memory", "slots", "waiting", "context", "tok/s", "up"]
    if width < _WIDE:
        columns = [name for name in columns if name not in ("waiting", "context")]
    if width < _NARROW:
        columns = [name for name in columns if name not in ("pid", "memory")]
    for name in columns:
        left = name in ("model", "on")
        table.add_column(
            name, justify="left" if left else "right", no_wrap=name != "model", min_width=1
        )
    for model in look.models:
        cells = _model_cells(model, look.time)
        table.add_row(*(cells[name] for name in columns))
    return table


def _model_cells(model: Model, now: float) -> dict[str, Text]:
    server, status = model.server, model.status
    path = server.model_path
    waiting = None if status is None else status.waiting
    size = sum(use.vram + (use.gtt or 0) for use in model.uses) or model.resident
    return {
        "model": _shortened(one_line(server.alias or (path.name if path else "?"))),
        "pid": Text(str(server.pid)),
        "on": Text(_place(model)),
        "memory": Text("-" if size is None else format_bytes(size)),
        "slots": Text(_slots(model)),
        "waiting": Text("-" if waiting is None else str(waiting)),
        "context": Text(_context(model)),
        "tok/s": Text("-" if model.rate is None else f"{model.rate:.1f}"),
        "up": Text("-" if server.started is None else _age(now - server.started)),
    }


def _place(model: Model) -> str:
    """What the kernel sees it use; else what it was told to use."""
    if model.uses:
        return " ".join(_short(use.device) for use in model.uses)
    names = model.server.device_names
    return "?" if names is None else one_line(",".join(names)) or "CPU"


def _short(device: Device) -> str:
    return device.label if device.ordinal is None else f"GPU {device.ordinal}"


def _slots(model: Model) -> str:
    """`2/4`: those that work, of all."""
    status, parallel = model.status, model.server.parallel
    if status is None:
        return "-"
    if status.state != "ready":
        return _STATES[status.state]
    if status.busy_slots is None:
        return "-"
    return f"{status.busy_slots}/{'?' if parallel is None else parallel}"


def _shortened(text: str | Text) -> Text:
    """What gives way when the terminal is narrow: a column that may wrap, of cells that do not."""
    shown = Text(text) if isinstance(text, str) else text
    shown.no_wrap, shown.overflow = True, "ellipsis"
    return shown


def _context(model: Model) -> str:
    """How full the fullest slot is: at 100 % its answer ends."""
    slots = (model.status.slots if model.status else None) or ()
    shares = [
        slot.n_tokens / slot.n_ctx
        for slot in slots
        if slot.state != "idle" and slot.n_tokens is not None and slot.n_ctx
    ]
    return f"{max(shares):.0%}" if shares else "-"


def _age(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
