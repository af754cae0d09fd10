"""Start llama-servers for one model, one after another, and tell what became of each."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rocllm import env
from rocllm.backends.base import LoadedInfo, LoadRequest
from rocllm.backends.decide import Decision, decide, engine_name
from rocllm.backends.recovery import Rung, Situation, next_step
from rocllm.backends.supervised import ServingChild
from rocllm.backends.verify import verify_devices
from rocllm.client.channel import Where
from rocllm.devices import Device, discrete_gpus, vram_info, wait_memory_released
from rocllm.doctor import launch_warnings
from rocllm.endpoint import Endpoint
from rocllm.errors import (
    AddressInUse,
    RequestError,
    RequestTimeout,
    RocllmError,
    ServerCrashed,
    ServerError,
    StreamClosed,
)
from rocllm.memory import Measurement, measured_parts, store_measurement
from rocllm.options import LoadOptions
from rocllm.server import (
    LaunchCommand,
    LaunchOptions,
    LoadReport,
    Names,
    RunDir,
    ServerBinary,
    ServerProcess,
    build_command,
    check_health,
    diagnose,
    look_after,
    look_before,
    start_server,
)
from rocllm.units import format_seconds

# Tries with new ports, when the port is ours to choose and was taken between choosing and binding.
PORT_TRIES = 3
# Seconds after its connection broke in which a request sees that its server ends. One that we have
# started ourselves ends before; it is a wrapper script that notices a little later.
_CRASH_NOTICE = 1.0
# Seconds in which a server that is alive answers a health check; it does so from a thread that has
# nothing else to do, however busy the model is.
_HANG_TIMEOUT = 5.0


class LlamaServer:
    """One running llama-server."""

    def __init__(
        self,
        process: ServerProcess,
        info: LoadedInfo,
        endpoint: Endpoint,
        interrupt: Callable[[], None],
        names: Names,
        crash_notice: float = _CRASH_NOTICE,
    ) -> None:
        self.info = info
        self._crash_notice = crash_notice
        self._process = process
        self._names = names
        self._before = look_before(process.pid or 0)
        self._endpoint = endpoint
        self._interrupt = interrupt
        self._stopping = False
        # Why it was killed, when that was us.
        self._verdict: ServerCrashed | None = None

    @property
    def has_ended(self) -> bool:
        """It does not run any more."""
        return self._process.exit_status is not None

    def crash(self) -> RocllmError:
        """Why it ended."""
        if self._verdict is not None:
            return self._verdict
        return diagnose(
            self._process.command.argv,
            self._process.exit_status or 0,
            self._process.output,
            ready=True,
            model=str(self.info.path),
            names=self._names,
            evidence=look_after(self._before),
        )

    def explain(self, error: RocllmError) -> RocllmError:
        """What a broken connection, or an answer that does not come, means."""
        notice = self._crash_notice
        if isinstance(error, RequestTimeout):
            self._kill_if_it_hangs(error)
            # One that is busy is not about to end.
            notice = notice if self._verdict is not None else 0.0
        self._process.wait(notice)
        if self._process.wait_if_ending() is None and not self._stopping:
            if not self._socket_is_gone():
                return error
            self._give_up(
                "cannot be reached any more",
                f"{self._endpoint} is gone; cleaners of temporary files remove such",
                "make the call again; XDG_RUNTIME_DIR may name a directory that nobody cleans",
                "socket_gone",
            )
        if self._stopping:
            return StreamClosed(
                f"{error.what}", why="the model was stopped meanwhile", remedy="make the call again"
            )
        crash = self.crash()
        if isinstance(crash, ServerError) and isinstance(error, RequestError):
            crash.text = error.text
        return crash

    def stop(self) -> None:
        """End it. Its clients go first: a connected one keeps it alive after SIGTERM."""
        if not self.has_ended:
            self._stopping = True
        self._interrupt()
        self._process.stop()

    def kill(self) -> None:
        """End it without any grace."""
        self._stopping = True
        self._process.kill()

    def _kill_if_it_hangs(self, error: RequestTimeout) -> None:
        if self.has_ended or check_health(self._endpoint, _HANG_TIMEOUT) == "ready":
            return
        self._give_up(
            "hung",
            f"{error.what}; nor did it answer a health check in {format_seconds(_HANG_TIMEOUT)}",
            "make the call again; if it happens again, see dmesg for the GPU driver's words",
            "hang",
        )

    def _socket_is_gone(self) -> bool:
        path = self._endpoint.socket_path
        return path is not None and not os.path.lexists(path)

    def _give_up(self, what: str, why: str, remedy: str, cause: str) -> None:
        self._verdict = ServerCrashed(
            f"{self._names.engine} (process {self._process.pid}) {what}, and was killed",
            why=why,
            remedy=remedy,
            argv=self._process.command.argv,
            output=self._process.output,
        )
        self._verdict.cause = cause
        self._process.kill()


class LlamaServerLauncher:
    """Decides how a model is run, and starts servers for it.

    interrupt: ends what clients have under way.
    """

    backend = "rocm"

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

    def start(self, cancel: threading.Event, on_exit: Callable[[], None]) -> ServingChild:
        """Start a server; the first decides how, and on which endpoint, for those that follow."""
        self._await_memory()
        decision = self._decision = self._decision or decide(self._request, self._options)
        for device in decision.choice.devices:
            if device not in self._used_before:
                used = vram_info(device, root=self._request.root).used
                self._used_before[device] = used
        try:
            return self._start(decision, cancel, on_exit)
        except RocllmError as exc:
            decision.name_cause(exc)
            raise

    def adapt(self, error: RocllmError) -> bool:
        """Take the next rung of the recovery ladder, if one may mend `error`."""
        step = next_step(error, self._situation(), self._taken)
        if step is None:
            if self._taken and not error.retryable:
                tried = "; ".join(self._taken.values())
                error.why = "\n".join(part for part in (error.why, f"tried: {tried}") if part)
            return False
        self._taken[step.rung] = step.note
        self._options = step.options
        self._decision = None
        return True

    def _situation(self) -> Situation:
        decision, environ = self._decision, self._request.environ
        devices = decision.choice.devices if decision else ()
        return Situation(
            asked=self._request.options,
            options=self._options,
            ctx_size=decision.plan.ctx_size if decision else None,
            devices=devices,
            others=discrete_gpus(decision.machine) if decision else (),
            vulkan_server=env.vulkan_server_path(environ),
        )

    def _await_memory(self) -> None:
        """Wait until the GPUs have back what the server before this one has used."""
        if self._last is not None:
            pid, devices = self._last
            before = [self._used_before[device] for device in devices]
            wait_memory_released(devices, before, pid=pid, root=self._request.root)

    def remove(self) -> None:
        """Leave nothing behind, after the last server has ended."""
        if self._run_dir is not None:
            self._run_dir.remove()

    @property
    def info(self) -> LoadedInfo:
        """What the last server runs, where and how."""
        assert self._info is not None, "nothing was started"
        return self._info

    @property
    def endpoint(self) -> Where:
        """Where every server of this launcher is reached."""
        assert self._endpoint is not None, "nothing was started"
        return self._endpoint

    @property
    def slot_save_path(self) -> Path:
        """Where every server of this launcher may save the content of its slots."""
        assert self._run_dir is not None, "nothing was started"
        return self._run_dir.slot_save_path

    def _start(
        self, decision: Decision, cancel: threading.Event, on_exit: Callable[[], None]
    ) -> ServingChild:
        if self._run_dir is None:
            self._run_dir = RunDir.create(self._request.environ)
        run_dir, options = self._run_dir, decision.options
        # Clients know the address of the first server, so it stays that of all.
        tries = 1 if self._endpoint or options.port or not options.tcp else PORT_TRIES
        for left in reversed(range(tries)):
            endpoint = self._endpoint or choose_endpoint(options, run_dir, tcp=options.tcp)
            run_dir.socket_path.unlink(missing_ok=True)
            try:
                process, report = start_server(
                    self._command(decision, endpoint, run_dir),
                    endpoint,
                    model_path=self._request.path,
                    start_timeout=options.start_timeout,
                    names=decision.names,
                    cancel=cancel,
                    on_progress=self._request.on_progress,
                    on_spawn=partial(self._note_child, decision, run_dir),
                    on_exit=on_exit,
                )
            except AddressInUse:
                if not left:
                    raise
                continue
            self._endpoint = endpoint
            return self._verified(decision, endpoint, process, report)
        raise AssertionError("the last try returns or raises")

    def _engine(self, binary: ServerBinary) -> str:
        """The engine in words."""
        return engine_name(binary)

    def _note_child(self, decision: Decision, run_dir: RunDir, pid: int) -> None:
        self._last = pid, decision.choice.devices
        run_dir.write_owner(pid)

    def _verified(
        self, decision: Decision, endpoint: Endpoint, process: ServerProcess, report: LoadReport
    ) -> LlamaServer:
        chosen = decision.choice.devices if decision.device_names else ()
        try:
            self._keep_measurement(decision, report)
            notes = verify_devices(chosen, decision.plan.n_gpu_layers, report)
        except BaseException:
            process.stop()
            raise
        notes = self._notes(decision, report, notes)
        self._info = self._describe(decision, process.pid, report, notes)
        return LlamaServer(process, self._info, endpoint, self._interrupt, decision.names)

    def _notes(
        self, decision: Decision, report: LoadReport, notes: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        """What is not as it was chosen."""
        if decision.choice.problem is not None:
            notes = (f"the CPU is used: {decision.choice.problem}", *notes)
        if not decision.options.loopback:
            host = f"{decision.options.host} is reachable from other machines"
            notes += (f"{host}: prompts, answers and the key travel unencrypted",)
        notes += launch_warnings(
            decision.machine, decision.choice, self._request.environ, decision.binary
        )
        if report.draft_problem is not None:
            notes = (*notes, f"the draft model is not used: {report.draft_problem}")
        return notes

    def _command(self, decision: Decision, endpoint: Endpoint, run_dir: RunDir) -> LaunchCommand:
        launch = LaunchOptions(
            model_path=self._request.path,
            alias=decision.info.name or self._request.path.stem,
            settings=decision.plan.settings,
            device_names=decision.device_names,
            flash_attn=decision.options.flash_attn or "auto",
            load_mode=decision.options.load_mode,
            threads=decision.options.threads,
            mmproj=decision.options.mmproj,
            model_draft=decision.options.model_draft,
            slot_save_path=run_dir.slot_save_path,
        )
        return build_command(
            decision.binary,
            launch,
            endpoint,
            environ=decision.environ,
            config_home=run_dir.config_home,
        )

    def _keep_measurement(self, decision: Decision, report: LoadReport) -> None:
        """What the load took, for the next plan."""
        measurement = Measurement(
            engine_name(decision.binary),
            tuple(gpu.label for gpu in decision.choice.devices),
            decision.plan.settings,
            measured_parts(report.buffers, decision.device_names),
        )
        store_measurement(self._request.path, measurement, self._request.environ)

    def _describe(
        self, decision: Decision, pid: int | None, report: LoadReport, notes: tuple[str, ...]
    ) -> LoadedInfo:
        plan, choice, endpoint = decision.plan, decision.choice, self.endpoint
        return LoadedInfo(
            path=self._request.path,
            model=decision.info,
            backend=self.backend,
            engine=self._engine(decision.binary),
            devices=choice.devices if decision.device_names else (),
            device_because=choice.because,
            engine_because=(decision.binary.found_by,),
            plan_because=plan.because,
            ctx_size=report.n_ctx_slot or plan.ctx_size,
            parallel=report.n_slots or plan.parallel,
            n_gpu_layers=plan.n_gpu_layers,
            buffers=report.buffers,
            warnings=notes,
            recovered=tuple(self._taken.values()),
            endpoint=endpoint if isinstance(endpoint, Endpoint) else None,
            pid=pid,
        )


def choose_endpoint(options: LoadOptions, run_dir: RunDir, *, tcp: bool) -> Endpoint:
    """A private UNIX socket, or the TCP address that was asked for.

    Raises `AddressInUse` for a port of the user's that is taken: another server there would answer
    our health checks in the place of ours.
    """
    if not tcp:
        return Endpoint.unix(run_dir.socket_path)
    host = options.host or "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, options.port or 0))
        except OSError as exc:
            raise AddressInUse(
                f"cannot listen on {host} port {options.port or 'any'}: {exc.strerror}",
                why="another process listens there" if exc.errno == errno.EADDRINUSE else None,
                remedy="choose another port, or leave host and port away: then a private socket "
                "is used",
            ) from exc
        port: int = probe.getsockname()[1]
    return Endpoint.tcp(host, port, api_key=secrets.token_urlsafe(24))
