"""`rocllm top`, as a person and as a program sees it."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from rocllm.cli._top_look import Look, Model, Watch, as_json
from rocllm.cli._top_view import frame
from rocllm.cli.top import top
from rocllm.devices.types import Problem
from rocllm.errors import OptionsError
from rocllm.memory import HostMemory
from rocllm.server import RunDir
from rocllm.server.running import RunningServer, list_running
from rocllm.server.status import ServerStatus, Slot
from rocllm.testing.fake_sysfs import (
    DESKTOP,
    RAPHAEL,
    RX_7700_XT,
    SENSORS,
    FakeGpu,
    partitions,
    write_process,
    write_tree,
)

_GIB = 1024**3
_DEADLINE = 60.0
_BUSY = dataclasses.replace(RX_7700_XT, runtime_status="active", gpu_id=1, files=SENSORS)
_ASLEEP = dataclasses.replace(
    RX_7700_XT,
    pci_address="0000:43:00.0",
    render_minor=130,
    card=2,
    runtime_status="suspended",
    vram_used=0,
    files=SENSORS,
)


def run(root: Path, *arguments: str, width: int = 80) -> str:
    """Standard output of the command, piped."""
    app = typer.Typer()
    app.command()(top)
    result = CliRunner().invoke(app, ["--root", str(root), *arguments], env={"COLUMNS": str(width)})
    if result.exception is not None:
        raise result.exception
    return result.stdout


def machine(root: Path, *gpus: FakeGpu) -> Path:
    """A tree with main memory, too."""
    write_tree(root, gpus or (_BUSY, _ASLEEP, RAPHAEL))
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/meminfo").write_text("MemTotal: 131072000 kB\nMemAvailable: 98304000 kB\n")
    return root


def model(**fields: Any) -> Model:
    """A running one."""
    server = RunningServer(
        pid=4711,
        alias="Qwen3 30B A3B Instruct 2507 with a name that is too long for a line",
        parallel=4,
        device_names=(),
        started=1_000_000.0,
    )
    slots = (Slot(id=0, state="generating", n_ctx=8192, n_tokens=4096, n_decoded=96),)
    status = ServerStatus(state="ready", time=0, busy_slots=1, waiting=2, slots=slots)
    return dataclasses.replace(Model(server, status, 83.21, (), 2 * _GIB), **fields)


def look(root: Path, *models: Model) -> Look:
    """One look at a tree, with some models."""
    watch = Watch(root)
    try:
        return dataclasses.replace(watch.look(0), models=models, time=1_007_384.0)
    finally:
        watch.close()


def text(seen: Look, width: int = 80, height: int | None = None) -> list[str]:
    """The lines of a frame."""
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(frame(seen, console, height))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_frame_of_80_columns(tmp_path: Path) -> None:
    """A line for each GPU and each model; what sleeps is said to sleep."""
    lines = text(look(machine(tmp_path), model()))

    assert all(len(line) <= 80 for line in lines)
    assert lines[2].split() == ["#", "GPU", "memory", "busy", "clock", "power", "temp"]
    assert re.fullmatch(
        r"0  Radeon RX 7700.*…  █░{7}  1.4/12.0 GiB    97 %  2171 MHz  228 W  61 °C", lines[3]
    )
    assert re.fullmatch(r"1  Radeon RX .*…  ░{8}  0.0/12.0 GiB  asleep +- +- +-", lines[4])
    assert re.fullmatch(r"2  Radeon of Ryzen 7000 +░{8} +\?/61.0 GiB +- +- +- +-", lines[5])
    assert re.fullmatch(r"   main memory +██░{6} +31/125 GiB", lines[6])
    assert lines[8].split() == ["model", "pid", "on", "memory", "slots", "tok/s", "up"]
    assert re.fullmatch(r"Qwen3 30B .*…  4711  CPU  2.0 GiB    1/4   83.2  2:03:04", lines[9])


def test_a_wide_terminal_shows_more(tmp_path: Path) -> None:
    """Addresses, both clocks, the limit of the power, who waits, how full the fullest slot is."""
    lines = text(look(machine(tmp_path), model()), width=120)

    assert all(len(line) <= 120 for line in lines)
    assert "0000:03:00.0" in lines[3]
    assert lines[3].endswith("2171 MHz      1124 MHz  228 W  245 W  61 °C")
    assert lines[9].split()[-5:] == ["1/4", "2", "50%", "83.2", "2:03:04"]


def test_a_narrow_terminal_shows_the_essential(tmp_path: Path) -> None:
    """Names give way, numbers do not."""
    lines = text(look(machine(tmp_path), model()), width=50)

    assert all(len(line) <= 50 for line in lines)
    assert re.fullmatch(r"0  Radeon RX …  1.4/12.0 GiB +97 %  228 W  61 °C", lines[3])
    assert re.search(r"1/4   83.2  2:03:04$", lines[9])


def test_no_colour_and_no_more_than_ascii(tmp_path: Path) -> None:
    """A bar can be read without its colour, and in a locale without its characters."""
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "76"}
    done = subprocess.run(
        [sys.executable, "-m", "rocllm", "top", "--once", "--root", machine(tmp_path)],
        env=environ,
        capture_output=True,
        check=True,
        timeout=_DEADLINE,
    )
    assert done.stdout.isascii()
    assert b"#......." in done.stdout
    assert b"61 C" in done.stdout
    assert re.search(rb"Radeon RX 77[^#]*[?] +#", done.stdout)  # it was shortened
    assert b"\x1b" not in done.stdout


def test_a_model_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    """A file may call itself anything, and so may a process."""
    evil = "\x1b]0;owned\x07\x1b[2J\u202eab\n\rc[red]"
    server = dataclasses.replace(model().server, alias=evil, device_names=(evil,))
    root = machine(tmp_path)
    write_process(root, 9, evil, _BUSY, drm_memory_vram="1048576 KiB")
    lines = text(look(root, model(server=server)), width=150)

    shown = "".join(lines)
    assert shown.isprintable()
    assert "[red]" in shown
    assert "owned" in shown


def test_where_a_model_runs(tmp_path: Path) -> None:
    """What the kernel sees it use counts, then what it was told to use; not known is said."""
    root = machine(tmp_path, _BUSY)
    write_process(root, 4711, "llama-server", _BUSY, kfd=5 * _GIB, drm_memory_gtt="1 KiB")
    seen = look(root)
    server = model().server

    def place(**fields: Any) -> str:
        shown = text(dataclasses.replace(seen, models=(model(**fields),)))
        return shown[-1].split("4711")[1]

    assert place(uses=seen.processes).startswith("  GPU 0  5.0 GiB")
    assert place().startswith("  CPU  2.0 GiB")
    told = dataclasses.replace(server, device_names=("ROCm0", "ROCm1"))
    assert place(server=told).startswith("  ROCm0,ROCm1")
    assert place(server=dataclasses.replace(server, device_names=None)).startswith("  ?")


@pytest.mark.parametrize(
    ("status", "slots"),
    [
        (None, "-"),
        (ServerStatus(state="loading", time=0), "loading"),
        (ServerStatus(state="busy", time=0), "prompt"),
        (ServerStatus(state="unreachable", time=0), "no answer"),
        (ServerStatus(state="ready", time=0), "-"),
        (ServerStatus(state="ready", time=0, busy_slots=0), "0/4"),
    ],
)
def test_a_server_that_does_not_tell(
    status: ServerStatus | None, slots: str, tmp_path: Path
) -> None:
    """What is not known is not shown as nothing."""
    lines = text(look(machine(tmp_path), model(status=status, rate=None)))

    assert re.search(rf" {re.escape(slots)}      -  2:03:04$", lines[-1])


def test_a_spill_and_who_else_is_there(tmp_path: Path) -> None:
    """Said in words, with what to do."""
    root = machine(tmp_path, _BUSY)
    write_process(
        root, 9, "vulkan", _BUSY, drm_memory_vram="3145728 KiB", amd_evicted_vram="1048576 KiB"
    )
    shown = " ".join(text(look(root)))

    assert "1.0 GiB of the video memory of vulkan (9) are in system memory; use a" in shown
    assert "other programs on GPU 0: vulkan (9) 3.0 GiB" in shown


def test_a_machine_without_an_amd_gpu(tmp_path: Path) -> None:
    """It says why, as far as that can be told, and shows what there is."""
    lines = text(look(machine(tmp_path, FakeGpu(device_id=0x6818, driver="radeon", kfd=False))))
    shown = " ".join(lines)

    assert "0 GPUs, 0 models" in lines[0]
    assert "no AMD GPU that the amdgpu driver runs: models run on the CPU" in shown
    assert "is driven by radeon" in shown
    assert "main memory" in shown
    assert lines[-1] == "no model is running"


def test_a_card_that_is_taken_out_is_shown_as_gone(tmp_path: Path) -> None:
    """The view goes on."""
    root = machine(tmp_path, _BUSY)
    watch = Watch(root)
    try:
        watch.look(0)
        for path in ("sys/class/drm/card0", "sys/class/kfd"):
            (root / path).rename(root / path.replace("/", "-"))
        seen = watch.look(0)
    finally:
        watch.close()

    assert re.search(r"^0  Radeon .* - +gone +- +- +-$", text(seen)[3])


def test_a_card_that_kfd_has_not_forgotten_is_shown_as_gone(tmp_path: Path) -> None:
    """Its node may stay for a while; when the card comes back, it is there again."""
    root = machine(tmp_path, _BUSY)
    card, out = root / "sys/class/drm/card0", root / "out"
    watch = Watch(root)
    try:
        watch.look(0)
        card.rename(out)
        seen = [watch.look(0), watch.look(0)]
        out.rename(card)
        back = watch.look(0)
    finally:
        watch.close()

    for one in seen:
        assert [sample.present for sample in one.samples] == [False]
        assert re.search(r"^0  Radeon .* - +gone +- +- +-$", text(one)[3])
    assert [sample.busy_percent for sample in back.samples] == [97]


def test_many_devices_leave_room_for_the_models(tmp_path: Path) -> None:
    """On a rack server in its finest partition mode."""
    root = machine(tmp_path, *partitions(_BUSY, 8))
    lines = text(look(root, model()), height=24)
    assert "main memory" in lines[11]

    lines = text(look(root, model()), height=14)
    assert lines[9] == "   and 2 more"
    assert len(lines) == 14


def test_what_takes_several_lines_does_not_push_the_models_out(tmp_path: Path) -> None:
    """However small the window is: a terminal cuts off what is below its last line."""
    root = machine(tmp_path, *partitions(_BUSY, 8))
    seen = look(root, model())
    long = Problem("a driver that is not there", "a remedy of many words " * 5)
    seen = dataclasses.replace(
        seen, machine=dataclasses.replace(seen.machine, problems=(long, long))
    )
    for width in (40, 60, 80, 120):
        lines = text(seen, width, height=24)
        assert len(lines) <= 24, width
        assert lines[-1].startswith("Qwen3")


def test_json_is_what_others_build_on(tmp_path: Path) -> None:
    """The names of the fields are a promise; what is not known is null."""
    root = machine(tmp_path, _BUSY)
    write_process(root, 9, "a", _BUSY, drm_memory_vram="4 KiB", drm_memory_gtt="8 KiB")
    answer = json.loads(run(root, "--once", "--json"))

    assert list(answer) == ["time", "devices", "host", "models", "problems"]
    assert answer["devices"] == [
        {
            "pci_address": "0000:03:00.0",
            "name": "Radeon RX 7700/7800 XT",
            "gfx_target": "gfx1101",
            "ordinal": 0,
            "integrated": False,
            "present": True,
            "asleep": False,
            "memory": {
                "pool": "vram",
                "total": 12868124672,
                "used": 1491832832,
                "free": 11376291840,
                "vram_total": 12868124672,
                "vram_used": 1491832832,
                "visible_total": None,
                "visible_used": None,
                "gtt_total": 65498251264,
                "gtt_used": None,
            },
            "busy_percent": 97,
            "memory_busy_percent": 61,
            "core_clock": 2171000000,
            "memory_clock": 1124000000,
            "power": 228.0,
            "power_limit": 245.0,
            "temperature": 61.0,
            "junction_temperature": 79.0,
            "memory_temperature": 74.0,
            "processes": [{"pid": 9, "name": "a", "vram": 4096, "gtt": 8192}],
            "spill": None,
        }
    ]
    assert answer["host"] == {"total": 131072000 * 1024, "free": 98304000 * 1024}
    assert (answer["models"], answer["problems"]) == ([], [])


def test_json_of_a_model(tmp_path: Path) -> None:
    """Numbers that it does not tell are null, not nought."""
    (answer,) = as_json(look(machine(tmp_path), model()))["models"]

    assert answer == {
        "pid": 4711,
        "parent_pid": None,
        "name": "Qwen3 30B A3B Instruct 2507 with a name that is too long for a line",
        "path": None,
        "endpoint": None,
        "started": 1_000_000.0,
        "devices": [],
        "device_names": [],
        "vram": None,
        "resident": 2 * _GIB,
        "state": "ready",
        "parallel": 4,
        "busy_slots": 1,
        "waiting": 2,
        "slots": [
            {
                "id": 0,
                "id_task": None,
                "state": "generating",
                "n_ctx": 8192,
                "n_tokens": 4096,
                "n_decoded": 96,
            }
        ],
        "tokens_per_second": 83.21,
    }


def test_another_machine_has_none_of_our_models(tmp_path: Path) -> None:
    """A tree from a bug report shows its GPUs, and nothing of this machine."""
    run_dir = RunDir.create(os.environ)
    try:
        run_dir.write_owner(os.getpid())
        assert os.getpid() in {one.pid for one in list_running(os.environ)}
        seen = look(write_tree(tmp_path, DESKTOP))
    finally:
        run_dir.write_owner(None)
        run_dir.remove()

    assert seen.models == ()
    assert seen.host == HostMemory()
    assert not any("main memory" in line for line in text(seen))


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "0.01"])
def test_an_interval_that_cannot_be_meant(interval: str, tmp_path: Path) -> None:
    """It is refused."""
    with pytest.raises(OptionsError, match="--interval"):
        run(machine(tmp_path), "--once", "--interval", interval)


def test_root_that_is_no_machine(tmp_path: Path) -> None:
    """As with the other commands."""
    with pytest.raises(OptionsError, match="holds no machine"):
        run(tmp_path, "--once")


class Terminal:
    """`rocllm top` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._leader, follower = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(follower)
        environ = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environ.pop(name, None)
        self.process = subprocess.Popen(
            (sys.executable, "-m", "rocllm", "top", "-i", "0.1", *arguments),
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            env=environ,
        )
        self._follower = follower
        self.seen = ""

    def resize(self, lines: int, columns: int) -> None:
        """As a window does."""
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, condition: Callable[[str], object]) -> None:
        """Read until `condition` holds for what has been shown since the last call."""
        start, deadline = len(self.seen), time.monotonic() + _DEADLINE
        while not condition(self.seen[start:]):
            assert time.monotonic() < deadline, f"not seen in {self.seen[start:]!r}"
            if select.select([self._leader], [], [], 0.1)[0]:
                self.seen += os.read(self._leader, 65536).decode("utf-8", "replace")

    def end(self, number: signal.Signals) -> int:
        """Send a signal and read to the end; the exit status."""
        self.process.send_signal(number)
        self.until(lambda seen: seen.endswith("\x1b[?1049l"))
        return self.process.wait(_DEADLINE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._leader)
        os.close(self._follower)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_leaves_the_terminal_as_it_was(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    """It draws on the second screen, follows the window, and gives cursor and screen back."""
    terminal = Terminal("--root", str(machine(tmp_path)))
    try:
        terminal.until(lambda seen: "asleep" in seen and "61 °C" in seen)
        assert terminal.seen.startswith("\x1b[?1049h")
        assert "PCI address" not in terminal.seen
        terminal.resize(24, 130)
        terminal.until(lambda seen: "PCI address" in seen)
        (tmp_path / "sys/class/drm/card0/device/gpu_busy_percent").write_text("12\n")
        terminal.until(lambda seen: "12 %" in seen)

        assert terminal.end(number) == status
        assert terminal.seen.endswith("\x1b[?25h\x1b[?1049l")
        assert termios.tcgetattr(terminal._follower) == terminal.before
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()


def test_piped_it_prints_one_frame_after_the_other(tmp_path: Path) -> None:
    """Without any control character, and it ends quietly when the reader does."""
    command = (sys.executable, "-m", "rocllm", "top", "-i", "0.1", "--root", machine(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(24)]
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(_DEADLINE) == 0

    assert sum(line.startswith(b"rocllm top") for line in lines) == 3
    assert b"\x1b" not in b"".join(lines)
    assert errors == b""


def test_json_without_once_is_a_line_for_each_look(tmp_path: Path) -> None:
    """So that a program can read along."""
    command = (sys.executable, "-m", "rocllm", "top", "--json", "-i", "0.1")
    with subprocess.Popen(
        (*command, "--root", machine(tmp_path)), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(_DEADLINE) == 130

    assert looks[0]["time"] < looks[1]["time"]
    assert looks[1]["devices"][1]["asleep"] is True
