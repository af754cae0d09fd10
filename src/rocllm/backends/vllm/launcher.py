"""Start vLLM servers for one model, one after another."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial

from rocllm.backends.base import LoadedInfo, LoadRequest
from rocllm.backends.launcher import PORT_TRIES, LlamaServer, choose_endpoint
from rocllm.backends.recovery import CAUSES, Rung, Situation, next_step
from rocllm.backends.vllm.command import build_command
from rocllm.backends.vllm.decide import Decision, decide
from rocllm.backends.vllm.log import VllmLog
from rocllm.backends.vllm.shared_memory import SharedMemoryWatch, remove_shared_memory
from rocllm.devices import Device, discrete_gpus, vram_info, wait_memory_released
from rocllm.endpoint import Endpoint
from rocllm.errors import AddressInUse, OffloadFailed, RocllmError
from rocllm.server import LoadProgress, LoadReport, RunDir, ServerProcess, start_server

# Seconds that vLLM takes to end after its engine has died: it says so to every client first.
_CRASH_NOTICE = 10.0
# Lines of output that are kept: each of its processes tells the same failure once more.
_KEPT_LINES = 1000
# What may mend a start of vLLM's; the other rungs change what llama-server alone has.
_RUNGS: frozenset[Rung] = frozenset({"ctx_size", "device"})


class VllmLauncher:
    """Decides how a model is run, and starts servers for it.

    interrupt: ends what clients have under way.
    """

    def __init__(self, request: LoadRequest, interrupt: Callable[[], None]) -> None:
        self._request = request
        self._interrupt = interrupt
        self._options = request.options
        self._decision: Decision | None = None
        self._run_dir: RunDir | None = None
        self._endpoint: Endpoint | None = None
        self._info: LoadedInfo | None = None
        self._taken: dict[Rung, str] = {}
        # Bytes that were in use on each GPU before our first server there.
        self._used_before: dict[Device, int | None] = {}
        # The process of the last server, and its GPUs.
        self._last: tuple[int | None, tuple[Device, ...]] | None = None
        self._pid = os.getpid()
        # What the last server's processes share.
        self._shared: SharedMemoryWatch | None = None

    def start(self, cancel: threading.Event, on_exit: Callable[[], None]) -> LlamaServer:
        """Start a server; the first decides how, and on which endpoint, for those that follow."""
        self._clear()
        self._await_memory()
        decision = self._decision = self._decision or decide(self._request, self._options)
        for device in decision.choice.devices:
            if device not in self._used_before:
                used = vram_info(device, root=self._request.root).used
                self._used_before[device] = used
        if self._run_dir is None:
            self._run_dir = RunDir.create(self._request.environ)
        uds = decision.installation.has_uds and not decision.options.tcp
        # Clients know the address of the first server, so it stays that of all.
        tries = 1 if self._endpoint or decision.options.port or uds else PORT_TRIES
        for left in reversed(range(tries)):
            endpoint = self._endpoint or choose_endpoint(
                decision.options, self._run_dir, tcp=not uds
            )
            try:
                return self._start(decision, endpoint, self._run_dir, cancel, on_exit)
            except AddressInUse:
                if not left:
                    raise
            except RocllmError as exc:
                decision.name_cause(exc)
                raise
        raise AssertionError("the last try returns or raises")

    def adapt(self, error: RocllmError) -> bool:
        """Take the next rung of the recovery ladder that vLLM has, if one may mend `error`."""
        decision = self._decision
        devices = decision.choice.devices if decision else ()
        situation = Situation(
            asked=self._request.options,
            options=self._options,
            ctx_size=decision.settings.ctx_size if decision else None,
            devices=devices,
            others=discrete_gpus(decision.machine) if decision else (),
            vulkan_server=None,
        )
        step = next_step(error, situation, {*self._taken, *(CAUSES.keys() - _RUNGS)})
        if step is None:
            return False
        self._taken[step.rung] = step.note
        self._options, self._decision = step.options, None
        return True

    def remove(self) -> None:
        """Leave nothing behind, after the last server has ended."""
        self._clear()
        if self._run_dir is not None:
            self._run_dir.remove()

    @property
    def info(self) -> LoadedInfo:
        """What the last server runs, where and how."""
        assert self._info is not None, "nothing was started"
        return self._info

    @property
    def endpoint(self) -> Endpoint:
        """Where every server of this launcher listens."""
        assert self._endpoint is not None, "nothing was started"
        return self._endpoint

    def _clear(self) -> None:
        """Remove what a server that was killed has left in shared memory."""
        # In a forked copy of the program the server is not ours.
        if os.getpid() == self._pid and self._shared is not None:
            remove_shared_memory(self._shared.found)
            self._shared = None

    def _await_memory(self) -> None:
        """Wait until the GPUs have back what the server before this one has used."""
        if self._last is not None:
            pid, devices = self._last
            before = [self._used_before[device] for device in devices]
            wait_memory_released(devices, before, pid=pid, root=self._request.root)

    def _start(
        self,
        decision: Decision,
        endpoint: Endpoint,
        run_dir: RunDir,
        cancel: threading.Event,
        on_exit: Callable[[], None],
    ) -> LlamaServer:
        run_dir.socket_path.unlink(missing_ok=True)
        log = VllmLog(parallel=decision.settings.parallel)
        process, report = start_server(
            build_command(decision, endpoint, run_dir.path),
            endpoint,
            model_path=decision.directory,
            start_timeout=decision.options.start_timeout,
            names=decision.names,
            cancel=cancel,
            on_progress=self._note_progress,
            on_spawn=partial(self._note_child, decision, run_dir),
            on_exit=on_exit,
            log=log,
            kept_lines=_KEPT_LINES,
        )
        self._endpoint = endpoint
        try:
            _verify(decision, log, process)
        except BaseException:
            process.stop()
            raise
        if self._shared is not None:
            self._shared.look()
        self._info = self._describe(decision, endpoint, process, log, report)
        return LlamaServer(
            process, self._info, endpoint, self._interrupt, decision.names, _CRASH_NOTICE
        )

    def _note_child(self, decision: Decision, run_dir: RunDir, pid: int) -> None:
        self._last = pid, decision.choice.devices
        self._shared = SharedMemoryWatch(pid)
        run_dir.write_owner(pid)

    def _note_progress(self, progress: LoadProgress) -> None:
        if self._shared is not None:
            self._shared.glance()
        if self._request.on_progress is not None:
            self._request.on_progress(progress)

    def _describe(
        self,
        decision: Decision,
        endpoint: Endpoint,
        process: ServerProcess,
        log: VllmLog,
        report: LoadReport,
    ) -> LoadedInfo:
        settings, choice = decision.settings, decision.choice
        room = () if log.room is None else (f"the cache has room for {log.room} tokens",)
        return LoadedInfo(
            path=self._request.path,
            model=decision.info,
            backend="vllm",
            engine=decision.installation.name,
            devices=choice.devices,
            device_because=choice.because,
            engine_because=(decision.installation.found_by,),
            plan_because=(*decision.because, *room),
            ctx_size=settings.ctx_size,
            parallel=settings.parallel,
            n_gpu_layers=-1 if choice.devices else 0,
            buffers=report.buffers,
            warnings=decision.notes,
            recovered=tuple(self._taken.values()),
            endpoint=endpoint,
            pid=process.pid,
        )


def _verify(decision: Decision, log: VllmLog, process: ServerProcess) -> None:
    """Raise `OffloadFailed` when GPUs were chosen, and vLLM says that it uses the CPU."""
    if decision.choice.devices and log.device == "cpu":
        wanted = ", ".join(device.label for device in decision.choice.devices)
        raise OffloadFailed(
            f"{wanted} was chosen, and vLLM uses the CPU",
            why="its PyTorch does not find the GPU",
            remedy="see its last output in `.output`; to run on the CPU, ask for it: device='cpu'",
            argv=process.command.argv,
            output=process.output,
        )
