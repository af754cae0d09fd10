"""The `rocm` backend: a llama-server child on the chosen AMD GPU, or on the CPU."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import warnings
from collections.abc import Mapping

from rocllm.backends.base import LoadedInfo, LoadRequest
from rocllm.backends.verify import verify_devices
from rocllm.client import AsyncClient, Client
from rocllm.devices import (
    Choice,
    Machine,
    child_environment,
    choose_devices,
    discover_devices,
)
from rocllm.doctor import name_cause
from rocllm.endpoint import Endpoint
from rocllm.errors import (
    AddressInUse,
    OffloadFailed,
    RequestError,
    RocllmError,
    RocllmWarning,
    ServerError,
)
from rocllm.gguf import ModelInfo, read_model_info
from rocllm.memory import (
    Measurement,
    MemoryPlan,
    matching,
    measured_parts,
    plan_memory,
    read_measurements,
    read_memory,
    store_measurement,
)
from rocllm.options import LoadOptions
from rocllm.server import (
    LaunchCommand,
    LaunchOptions,
    LoadReport,
    RunDir,
    ServerBinary,
    ServerProcess,
    build_command,
    diagnose,
    find_server,
    list_devices,
    start_server,
)

# Tries with new ports, when the port is ours to choose and was taken between choosing and binding.
_PORT_TRIES = 3
# Seconds that a stream waits for its server to be seen dead after its connection broke.
_CRASH_NOTICE = 1.0


class LlamaServerBackend:
    """Runs GGUF models with llama.cpp's server."""

    name = "rocm"

    def available(self) -> bool:
        """A llama-server is there, a binary of its own or the embedded one."""
        return self.why_not() is None

    def why_not(self) -> str | None:
        """What is missing, in words."""
        try:
            find_server(None, os.environ)
        except RocllmError as exc:
            return str(exc)
        return None

    def load(self, request: LoadRequest) -> LlamaServerModel:
        """Choose device, engine and plan, start the server, and check what it uses."""
        info = read_model_info(request.path)
        machine = discover_devices(request.root, request.environ)
        binary: ServerBinary | None = None
        try:
            binary = find_server(request.options.llama_server, request.environ)
            return self._load(request, info, machine, binary)
        except RocllmError as exc:
            name_cause(exc, machine, request.environ, binary)
            raise

    def _load(
        self, request: LoadRequest, info: ModelInfo, machine: Machine, binary: ServerBinary
    ) -> LlamaServerModel:
        options = request.options
        choice = choose_devices(machine, options.devices)
        environ = child_environment(choice, request.environ)
        names = _engine_devices(binary, choice, environ)
        known = matching(
            read_measurements(request.path, request.environ),
            engine_name(binary),
            [gpu.label for gpu in choice.devices],
        )
        plan = plan_memory(
            info,
            read_memory(choice.devices, request.root),
            options,
            measurements=known,
        )
        return _Launch(request, info, binary, choice, names, plan, environ).run()


class LlamaServerModel:
    """A model in a running llama-server."""

    def __init__(
        self, info: LoadedInfo, endpoint: Endpoint, process: ServerProcess, run_dir: RunDir
    ) -> None:
        self._info = info
        self._endpoint = endpoint
        self._process = process
        self._run_dir = run_dir

    @property
    def info(self) -> LoadedInfo:
        """What was loaded, where and how."""
        return self._info

    def connect(self) -> Client:
        """A client for blocking callers."""
        return Client(self._endpoint, explain=self._explain)

    def connect_async(self) -> AsyncClient:
        """A client for asyncio."""
        return AsyncClient(self._endpoint, explain=self._explain)

    def close(self) -> None:
        """Stop the server and remove its directory."""
        self._process.stop()
        self._run_dir.remove()

    def _explain(self, error: RocllmError) -> RocllmError:
        """A broken connection is told as what broke it, when the child is gone."""
        status = self._process.wait(_CRASH_NOTICE)
        if status is None:
            return error
        crash = diagnose(
            self._process.command.argv,
            status,
            self._process.output,
            ready=True,
            model=str(self._info.path),
        )
        if isinstance(crash, ServerError) and isinstance(error, RequestError):
            crash.text = error.text
        return crash


class _Launch:
    """One load: everything is decided, the server is started on one endpoint after another."""

    def __init__(
        self,
        request: LoadRequest,
        info: ModelInfo,
        binary: ServerBinary,
        choice: Choice,
        device_names: tuple[str, ...],
        plan: MemoryPlan,
        environ: Mapping[str, str],
    ) -> None:
        self.request = request
        self.info = info
        self.binary = binary
        self.choice = choice
        self.device_names = device_names
        self.plan = plan
        self.environ = environ
        self.run_dir = RunDir.create(request.environ)

    def run(self) -> LlamaServerModel:
        try:
            return self._run()
        except BaseException:
            self.run_dir.remove()
            raise

    def _run(self) -> LlamaServerModel:
        options = self.request.options
        for attempt in range(1, _PORT_TRIES + 1):
            endpoint = _endpoint(options, self.run_dir)
            try:
                process, report = start_server(
                    self._command(endpoint),
                    endpoint,
                    model_path=self.request.path,
                    start_timeout=options.start_timeout,
                    cancel=self.request.cancel,
                    on_progress=self.request.on_progress,
                    on_spawn=self.run_dir.write_owner,
                )
            except AddressInUse:
                if not options.tcp or options.port is not None or attempt == _PORT_TRIES:
                    raise
                continue
            return self._verified(endpoint, process, report)
        raise AssertionError("the last try returns or raises")

    def _verified(
        self, endpoint: Endpoint, process: ServerProcess, report: LoadReport
    ) -> LlamaServerModel:
        chosen = self.choice.devices if self.device_names else ()
        try:
            self._keep_measurement(report)
            notes = verify_devices(chosen, self.plan.n_gpu_layers, report)
            if self.choice.problem is not None:
                notes = (f"the CPU is used: {self.choice.problem}", *notes)
            for note in notes:
                warnings.warn(note, RocllmWarning, stacklevel=2)
        except BaseException:  # a warning is an error where the user says so
            process.stop()
            raise
        return LlamaServerModel(
            self._info(endpoint, process, report, notes), endpoint, process, self.run_dir
        )

    def _command(self, endpoint: Endpoint) -> LaunchCommand:
        launch = LaunchOptions(
            model_path=self.request.path,
            alias=self.info.name or self.request.path.stem,
            settings=self.plan.settings,
            device_names=self.device_names,
            flash_attn=self.request.options.flash_attn or "auto",
            threads=self.request.options.threads,
        )
        return build_command(
            self.binary,
            launch,
            endpoint,
            environ=self.environ,
            config_home=self.run_dir.config_home,
        )

    def _keep_measurement(self, report: LoadReport) -> None:
        """What the load took, for the next plan."""
        buffers = ((one.device, one.kind, one.size) for one in report.buffers)
        measurement = Measurement(
            engine_name(self.binary),
            tuple(gpu.label for gpu in self.choice.devices),
            self.plan.settings,
            measured_parts(buffers, self.device_names),
        )
        store_measurement(self.request.path, measurement, self.request.environ)

    def _info(
        self,
        endpoint: Endpoint,
        process: ServerProcess,
        report: LoadReport,
        notes: tuple[str, ...],
    ) -> LoadedInfo:
        return LoadedInfo(
            path=self.request.path,
            model=self.info,
            backend=LlamaServerBackend.name,
            engine=engine_name(self.binary),
            devices=self.choice.devices if self.device_names else (),
            device_because=self.choice.because,
            engine_because=(self.binary.found_by,),
            plan_because=self.plan.because,
            ctx_size=report.n_ctx_slot or self.plan.ctx_size,
            parallel=report.n_slots or self.plan.parallel,
            n_gpu_layers=self.plan.n_gpu_layers,
            buffers=report.buffers,
            warnings=notes,
            endpoint=endpoint,
            pid=process.pid,
        )


def engine_name(binary: ServerBinary) -> str:
    """The engine in words, with its version: `native llama-server b11434-90e6a91`."""
    return f"{binary.kind} llama-server {binary.version}"


def _engine_devices(
    binary: ServerBinary, choice: Choice, environ: Mapping[str, str]
) -> tuple[str, ...]:
    """llama.cpp's names of the chosen GPUs, as the engine itself lists them under our mask.

    A mask with a wrong token hides every GPU without a word, so the engine is asked before anything
    is loaded. Raises `OffloadFailed` when it does not see what was chosen.
    """
    if not choice.devices:
        return ()
    listed = list_devices(binary, environ)
    if len(listed) == len(choice.devices):
        return tuple(device.name for device in listed)
    wanted = ", ".join(f"{device.name} ({device.pci_address})" for device in choice.devices)
    seen = ", ".join(f"{device.name} ({device.description})" for device in listed) or "no GPU"
    raise OffloadFailed(
        f"{wanted} was chosen, and {engine_name(binary)} sees {seen}",
        why="it was built without ROCm, or its ROCm libraries are missing or do not know this GPU",
        remedy="install a llama-server built for ROCm and set ROCM_LLAMA_SERVER_PATH to it; "
        "to run on the CPU, ask for it: device='cpu'",
        argv=(*binary.argv, "--list-devices"),
    )


def _endpoint(options: LoadOptions, run_dir: RunDir) -> Endpoint:
    """A private UNIX socket, or the TCP address that was asked for.

    Raises `AddressInUse` for a port of the user's that is taken: another server there would answer
    our health checks in the place of ours.
    """
    if not options.tcp:
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
