"""What a server that ended may have said, and what that means: the data of `diagnose`.

The texts are llama.cpp's (b11434, b11549), ROCm's, the dynamic loader's, the kernel's and those of
setpriv. Where each was recorded stands beside it in the tests.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace

from rocllm.errors import (
    AddressInUse,
    DeviceAccessDenied,
    InvalidGGUF,
    ModelFileError,
    ModelNotFound,
    NoDeviceFound,
    OffloadFailed,
    OutOfMemory,
    RocllmError,
    ServerCrashed,
    StartFailed,
    UnsupportedArchitecture,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One known cause of a server's end.

    id: its name, which an error carries as `cause`. example: what one sees, as recorded. pattern:
    finds it in the output; `None`: the signal or other evidence tells. error: the error it is,
    while loading. retryable: the same start, unchanged, is worth trying again. hint: it says that
    the GPU is not used, and not that the server ended: it counts where a GPU was asked for.

    `why` may use a named group of the pattern as `{name}`, if the group takes part in every match,
    and `{gpu}` where it has the group `node`.
    """

    id: str
    example: str
    pattern: re.Pattern[str] | None
    error: type[RocllmError]
    why: str
    remedy: str
    retryable: bool = False
    hint: bool = False


def _rule(
    name: str,
    example: str,
    pattern: str,
    error: type[RocllmError],
    why: str,
    remedy: str,
    *,
    retryable: bool = False,
) -> Rule:
    return Rule(name, example, re.compile(pattern), error, why, remedy, retryable)


_FETCH = "fetch the file again; `rocllm show FILE` says more"

_FILE = (
    _rule(
        "unknown_architecture",
        "unknown model architecture: 'lxama'",
        r"un(?:known|supported) model architecture: '(?P<arch>[^']*)'",
        UnsupportedArchitecture,
        "this llama.cpp does not know the model architecture {arch!r}",
        "use a newer llama-server, or another model",
    ),
    _rule(
        "truncated_file",
        "tensor 'blk.16.ffn_down.weight' data is not within the file bounds, model is corrupted or "
        "incomplete",
        r"tensor '(?P<tensor>[^']*)' data is not within the file bounds",
        InvalidGGUF,
        "the file ends before the data of tensor {tensor!r}: it is incomplete",
        "fetch the file again",
    ),
    _rule(
        "wrong_tensors",
        "missing tensor 'output_norm.weight'",
        r"wrong number of tensors; expected \d+, got \d+|too many tensors created"
        r"|missing tensor (?:info mapping for )?'?[^' ]+|check_tensor_dims: tensor "
        r"|corrupted model: \d+ tensors expected",
        InvalidGGUF,
        "the tensors in the file are not those that its architecture needs",
        "fetch the file again, or use a newer llama-server",
    ),
    # Not the bare words: a ROCm build says them of amdgpu.ids, and works all the same.
    _rule(
        "missing_file",
        "failed to open GGUF file '/models/m.gguf' (No such file or directory)",
        r"failed to open (?:GGUF file )?'?(?P<file>[^':]+).*No such file or directory",
        ModelNotFound,
        "there is no file {file!r}",
        "it may have been removed meanwhile: give the path of one that is there",
    ),
    _rule(
        "unreadable_file",
        "failed to open GGUF file '/models/m.gguf' (Permission denied)",
        r"failed to open (?:GGUF file )?'?(?P<file>[^':]+).*Permission denied"
        r"|error loading model: (?:read|seek|ftell|lseek) error: ",
        ModelFileError,
        "the system does not let the server read the file",
        "check its permissions, and the disk (dmesg) if those are right",
    ),
    # Not every file system can map files into memory: some of FUSE and of network shares cannot.
    _rule(
        "mmap_failed",
        "error loading model: mmap failed: No such device",
        r"mmap failed: (?!Cannot allocate memory)|not \d+ byte aligned, cannot mmap",
        ModelFileError,
        "the file cannot be mapped into memory where it lies",
        "copy it to a local disk, or load it without mmap",
    ),
    _rule(
        "bad_file",
        "invalid magic characters: 'NOPE', expected 'GGUF'",
        r"invalid magic characters|failed to read (?:magic|header|key-value pairs|tensor info"
        r"|tensor data)|bad GGUF version|GGUFv1 is no longer supported|GGUF file(?: version \d+)? "
        r"is (?:version \d+ but|extremely large)|unexpectedly reached end of file"
        r"|tensor '[^']*' (?:has invalid|is duplicated|has offset)|duplicate (?:key|tensor name) '"
        r"|found tensors with invalid data|key not found in model|array key not found"
        r"|wrong (?:type \S+ but expected|array)|error loading model (?:hyperparameters|vocabulary)"
        r"|string length \d+ exceeds|number of (?:tensors|key value pairs) is -?\d+ but must",
        InvalidGGUF,
        "the file is not a GGUF file, or a broken one",
        _FETCH,
    ),
)

_SMALLER = (
    "use a smaller ctx_size, fewer slots (parallel), a smaller model or quantisation, or fewer "
    "GPU layers"
)

_MEMORY = (
    # Before the next two: it is said after them, and tells what the memory was for.
    _rule(
        "out_of_context_memory",
        "failed to initialize the context: failed to allocate buffer for kv cache",
        r"failed to allocate (?:buffer for (?:kv|rs) cache|compute (?:pp |tg )?buffers"
        r"|output buffer of size)|failed to reserve (?:initial output buffer|graph for)",
        OutOfMemory,
        "the weights fitted; the memory that the context and its buffers need is not free",
        "use a smaller ctx_size or fewer slots (parallel)",
    ),
    _rule(
        "out_of_host_memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        r"bad_alloc|[Cc]annot allocate memory(?! in static TLS)|\bMemoryError\b"
        r"|(?:unable|failed) to allocate (?:CPU\w*|\w+_Host) buffer|ErrorOutOfHostMemory"
        r"|failed to allocate +[\d.]+ MB|posix_memalign failed with error 12"
        r"|insufficient memory \(attempted to allocate|_PyErr_NoMemory"
        r"|failed to map segment from shared object(?!: (?:Operation not|Permission))",
        OutOfMemory,
        "the machine's memory, or what this process may use of it, is not enough",
        f"{_SMALLER}; `ulimit -v` shows whether there is a limit",
    ),
    _rule(
        "out_of_device_memory",
        "allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory",
        r"(?:cudaMalloc|hipMalloc)\w* failed: out of memory|(?:ROCm|HIP|CUDA) error: out of memory"
        r"|(?:unable|failed) to allocate \S+ buffer|ErrorOutOfDeviceMemory|OutOfDeviceMemoryError"
        r"|ggml_vulkan: Device memory allocation of size \d+ failed",
        OutOfMemory,
        "the memory that the model, its context and its buffers need is not free on the device",
        _SMALLER,
    ),
)

_GPU = (
    _rule(
        "gpu_reset",
        "HW Exception by GPU node-1 (Agent handle: 0x5ab48bbcc960) reason :GPU Hang",
        r"HW Exception by GPU node-(?P<node>\d+)",
        ServerCrashed,
        "{gpu} hung, and the driver has reset it",
        "look at dmesg; a newer kernel or GPU firmware may help, and so may less load on the GPU",
    ),
    _rule(
        "device_lost",
        "terminate called after throwing an instance of 'vk::DeviceLostError'",
        r"vk::DeviceLostError|ErrorDeviceLost|ggml_vulkan: device lost|amdgpu: GPU reset begin"
        r"|\*ERROR\* ring \S+ timeout",
        ServerCrashed,
        "the GPU hung, and the driver has reset it",
        "look at dmesg; a newer kernel, Mesa or GPU firmware may help, and so may a smaller ubatch",
    ),
    _rule(
        "gpu_fault",
        "Memory access fault by GPU node-2 (Agent handle: 0x7f3b0c66f890) on address 0x7f36051000. "
        "Reason: Page not present or supervisor privilege.",
        r"Memory access fault by GPU node-(?P<node>\d+)",
        ServerCrashed,
        "{gpu} accessed memory that is not there; an integrated GPU that is not hidden is a common "
        "cause, and so is HSA_OVERRIDE_GFX_VERSION",
        "see `rocllm devices` for what is chosen, and dmesg for the driver's own words",
        retryable=True,
    ),
    _rule(
        "flash_attention_failed",
        "ggml_cuda_compute_forward: FLASH_ATTN_EXT failed",
        r"FLASH_ATTN_EXT failed|/fattn[\w-]*\.cuh?:\d+|\blaunch_fattn\b",
        ServerCrashed,
        "flash attention does not work with this model on this GPU",
        "use flash_attn='off'",
    ),
    _rule(
        "flash_attention_needed",
        "quantized V cache requires flash_attn to be enabled",
        r"quantized V cache (?:was requested, but this )?requires (?:flash_attn|Flash Attention)"
        r"|V cache quantization requires flash_attn",
        StartFailed,
        "a quantised V cache needs flash attention, which is off or does not work here",
        "use flash_attn='on', or cache_type_v='f16'",
    ),
    _rule(
        "no_rocblas_kernels",
        "rocBLAS error: Cannot read /opt/rocm/lib/rocblas/library/TensileLibrary.dat: Illegal seek "
        "for GPU arch : gfx1036",
        r"rocBLAS error: Cannot read .*TensileLibrary.* for GPU arch : (?P<gfx>gfx\w+)",
        StartFailed,
        "rocBLAS has no kernels for {gfx}",
        "hide that GPU (see `rocllm devices`), or use a newer ROCm or a Vulkan build",
    ),
    _rule(
        "wrong_gfx",
        "ROCm error: invalid device function",
        r"ROCm error: (?:invalid device function|device kernel image is invalid)"
        r"|no kernel image is available for execution",
        StartFailed,
        "this llama-server was not built for this GPU",
        "use a build that lists the GPU's gfx target, or a Vulkan build",
    ),
    _rule(
        "no_devices_for_rocblas",
        "rocBLAS error: Could not initialize Tensile host: No devices found",
        r"rocBLAS error: Could not initialize Tensile host",
        NoDeviceFound,
        "rocBLAS finds no GPU: none that this process may open is left",
        "`rocllm doctor` says what is in the way",
    ),
    _rule(
        "gpu_error",
        "ROCm error: unspecified launch failure",
        r"(?:ROCm|HIP|CUDA) error: (?P<said>.+)|ggml_cuda_compute_forward: \w+ failed",
        ServerCrashed,
        "an operation on the GPU failed",
        "look at dmesg for the driver's own words; `rocllm doctor` checks the installation",
        retryable=True,
    ),
)

_SYSTEM = (
    _rule(
        "socket_failed",
        "couldn't bind HTTP server socket, hostname: /run/user/1000/rocllm-x/s.sock, port: 8080",
        r"couldn't bind HTTP server socket, hostname: (?P<path>\S+\.sock)",
        StartFailed,
        "the socket {path} cannot be made: its directory is gone, full or not writable",
        "look at its disk (`df`), or set XDG_RUNTIME_DIR to another directory",
    ),
    _rule(
        "address_in_use",
        "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080",
        r"couldn't bind HTTP server socket, hostname: (?P<host>\S+), port: (?P<port>\d+)",
        AddressInUse,
        "the address {host} port {port} is in use, or does not belong to this machine",
        "choose another port, or leave host and port away: then a private socket is used",
        retryable=True,
    ),
    _rule(
        "disk_full",
        "No space left on device",
        r"No space left on device|Disk quota exceeded",
        StartFailed,
        "a disk is full",
        "make room; `df` shows which one it is",
    ),
    _rule(
        "open_files_limit",
        "Too many open files",
        r"Too many open files|cannot open shared object file: Error 24",
        StartFailed,
        "the server may not open as many files as it needs",
        "raise the limit: `ulimit -n`",
    ),
    _rule(
        "thread_limit",
        "terminate called after throwing an instance of 'std::system_error'\n"
        "  what():  Resource temporarily unavailable",
        r"what\(\): +(?:std::system_error: )?Resource temporarily unavailable"
        r"|can't start new thread|libgomp: Thread creation failed"
        r"|(?:error|fork|retry|failed to execute [^:]+): Resource temporarily unavailable",
        StartFailed,
        "the server may not start as many threads as it needs, or has no memory for their stacks",
        "raise the limit (`ulimit -u`, `ulimit -v`, pids.max of the control group), or use fewer "
        "threads",
    ),
    _rule(
        "wrong_machine",
        "setpriv: failed to execute /opt/llama-server: Exec format error",
        r"(?:failed to execute (?P<file>[^:]+): |\[Errno 8\] )Exec format error"
        r"|cannot execute(?: binary file)?: (?:Exec format error|required file not found)"
        r"|wrong ELF class|invalid ELF header"
        # execvp(3) gives what is no program to the shell.
        r"|: \d+: (?:\x7fELF|Syntax error: )|syntax error near unexpected token",
        StartFailed,
        "the file is not a program for this machine, or a broken script",
        "use a llama-server that was built for it",
    ),
    _rule(
        "missing_program",
        "setpriv: failed to execute /opt/llama-server: No such file or directory",
        r"(?:failed to execute (?=.*: No such file)|\[Errno 2\] No such file or directory: ')"
        r"(?P<file>[^:']+)",
        StartFailed,
        "there is no file {file!r}, or it is a script whose interpreter is not there",
        "it may have been removed meanwhile: install it again",
    ),
    _rule(
        "not_executable",
        "setpriv: failed to execute /opt/llama-server: Permission denied",
        r"failed to execute (?P<file>[^:]+): (?:Permission denied|Is a directory)"
        r"|\[Errno 13\] Permission denied: '(?P<file2>[^']+)'",
        StartFailed,
        "the system does not let this user execute the program",
        "chmod +x it, and look whether its disk is mounted noexec",
    ),
    _rule(
        "program_busy",
        "setpriv: failed to execute /opt/llama-server: Text file busy",
        r"Text file busy",
        StartFailed,
        "the program is just being written",
        "wait until it is installed, and try again",
        retryable=True,
    ),
    _rule(
        "mixed_libraries",
        "symbol lookup error: libggml-hip.so: undefined symbol: rocblas_sgbmv_64",
        r"undefined symbol: (?P<symbol>\w+)|version [`'](?P<version>[^']+)' not found",
        StartFailed,
        "the libraries do not fit together; ROCm versions may be mixed",
        "leave one ROCm version in LD_LIBRARY_PATH",
    ),
    _rule(
        "missing_library",
        "error while loading shared libraries: libhipblas.so.3: cannot open shared object file: No "
        "such file or directory",
        r"(?P<lib>[^\s:]+): cannot open shared object file",
        StartFailed,
        "the library {lib} is missing on this machine",
        "install the ROCm version that this llama-server was built for, or another build of it",
    ),
)


def _hint(
    name: str, example: str, pattern: str, error: type[RocllmError], why: str, remedy: str
) -> Rule:
    return replace(_rule(name, example, pattern, error, why, remedy), hint=True)


_DOCTOR = "`rocllm doctor` says what is in the way"

_HINTS = (
    _hint(
        "gpu_access_denied",
        "Unable to open /dev/kfd read-write: Permission denied",
        r"Unable to open /dev/kfd read-write|Failed to open /dev/dri/renderD\d+: Permission denied"
        r"|is not member of \"(?:render|video)\" group|HSA_STATUS_ERROR_OUT_OF_RESOURCES",
        DeviceAccessDenied,
        "this user may not open the GPU's device files",
        _DOCTOR,
    ),
    _hint(
        "driver_rejected",
        "modprobe: ERROR: could not insert 'amdgpu': Key was rejected by service",
        r"could not insert 'amdgpu': Key was rejected by service",
        NoDeviceFound,
        "Secure Boot does not let the kernel load the driver, which is not signed for it",
        "enrol its key (mokutil), or remove amdgpu-dkms and use the driver of the kernel",
    ),
    _hint(
        "driver_not_loaded",
        "ROCk module is NOT loaded, possibly no GPU devices",
        r"ROCk module is NOT loaded",
        NoDeviceFound,
        "the amdgpu driver is not loaded",
        _DOCTOR,
    ),
    _hint(
        "no_pcie_atomics",
        "kfd kfd: amdgpu: skipped device 1002:67df, PCI rejects atomics 730<0",
        r"skipped device (?P<pci_id>[0-9a-f]{4}:[0-9a-f]{4}), PCI rejects atomics",
        NoDeviceFound,
        "the driver skipped GPU {pci_id}: its PCIe slot has no atomic operations",
        "put it into a slot of the processor's own, or use a Vulkan build",
    ),
    _hint(
        "gpu_partly_visible",
        "Failed to set mem policy for GPU [0x6b0d]",
        r"Failed to set mem policy for GPU",
        NoDeviceFound,
        "the container sees the GPU's driver, and not all of its device files",
        "give it the render nodes that belong to its GPUs; see `rocllm doctor`",
    ),
    _hint(
        "bad_gfx_override",
        "HSA_OVERRIDE_GFX_VERSION 11.0 is invalid",
        r"HSA_OVERRIDE_GFX_VERSION (?P<value>\S+) is invalid",
        NoDeviceFound,
        "HSA_OVERRIDE_GFX_VERSION={value} is not a version",
        "unset it; this GPU may not need it at all",
    ),
    _hint(
        "no_gpu_visible",
        "ggml_cuda_init: failed to initialize ROCm: no ROCm-capable device is detected",
        r"no ROCm-capable device is detected|failed to initialize ROCm: (?P<said>.+)",
        NoDeviceFound,
        "ROCm shows no GPU to the server",
        _DOCTOR,
    ),
    _hint(
        "ignored_gtt_size",
        "amdgpu: unknown parameter 'gtt_size' ignored",
        r"amdgpu: unknown parameter '(?P<name>\w+)' ignored",
        NoDeviceFound,
        "the kernel does not know amdgpu's parameter {name}: the GPU gets no more memory by it",
        "for gtt_size use ttm.pages_limit on the kernel's command line",
    ),
    _hint(
        "not_a_gpu_build",
        "warning: no usable GPU found, --gpu-layers option will be ignored",
        r"no usable GPU found, --gpu-layers option will be ignored",
        OffloadFailed,
        "this llama-server was built without GPU support, or cannot load it",
        "install one that was built for ROCm, and set ROCM_LLAMA_SERVER_PATH to it",
    ),
)

# Last: others say why.
_FLAGS = (
    _rule(
        "invalid_device",
        'error while handling argument "--device": invalid device: ROCm0',
        r"invalid device: (?P<device>\S+)",
        StartFailed,
        "the server has no device {device}: it was built for other hardware, or the GPU is masked",
        "see `rocllm devices` and `llama-server --list-devices`",
    ),
    _rule(
        "bad_flag",
        "error: invalid argument: --nope",
        r"invalid argument: (?P<flag>-\S+)|error while handling argument \"(?P<flag2>[^\"]+)\""
        r"|unknown argument:? (?P<flag3>\S+)|expected value for argument",
        StartFailed,
        "this llama-server refuses one of its flags",
        "this is a fault of rocllm or a very old server: please report it with the command line",
    ),
    _rule(
        "load_failed",
        "llama_model_load: error loading model: done_getting_tensors: ...",
        r"error loading model: (?P<said>.+)|gguf_init_from_\w+: (?P<said2>.+)",
        StartFailed,
        "llama.cpp cannot load the model",
        "use a newer llama-server; if that does not help, fetch the file again",
    ),
)

# Found by the control group or the kernel's log, and not by what the server said.
KILLED_BY_OOM = Rule(
    "killed_by_oom",
    "SIGKILL, and a kill for want of memory that the kernel has counted or logged",
    None,
    OutOfMemory,
    "the kernel killed it because memory ran out",
    f"{_SMALLER}; or raise the limit of its control group, if that is what ran out",
)


def _signal(
    name: str,
    number: signal.Signals,
    error: type[RocllmError],
    why: str,
    remedy: str,
    *,
    retryable: bool,
) -> tuple[int, Rule]:
    return number, Rule(name, number.name, None, error, why, remedy, retryable)


# What the signal itself says, where the output says nothing.
SIGNALS: dict[int, Rule] = dict(
    (
        _signal(
            "illegal_instruction",
            signal.SIGILL,
            StartFailed,
            "the program uses instructions that this processor does not have",
            "use a llama-server that was built for this processor",
            retryable=False,
        ),
        _signal(
            "killed",
            signal.SIGKILL,
            ServerCrashed,
            "somebody killed it; the kernel does so when memory runs out (see dmesg)",
            "if it was the kernel: use a smaller model or context",
            retryable=True,
        ),
        _signal(
            "terminated",
            signal.SIGTERM,
            ServerCrashed,
            "somebody sent it SIGTERM",
            "start it again",
            retryable=True,
        ),
        _signal(
            "interrupted",
            signal.SIGINT,
            ServerCrashed,
            "somebody sent it SIGINT",
            "start it again",
            retryable=True,
        ),
        _signal(
            "hung_up",
            signal.SIGHUP,
            ServerCrashed,
            "somebody sent it SIGHUP: its terminal or session ended",
            "start it again",
            retryable=True,
        ),
        _signal(
            "segfault",
            signal.SIGSEGV,
            ServerCrashed,
            "it accessed memory that is not its own",
            "try another build of llama-server, and report it to its project",
            retryable=True,
        ),
        _signal(
            "aborted",
            signal.SIGABRT,
            ServerCrashed,
            "it gave up on an internal error",
            "see its last output",
            retryable=True,
        ),
        _signal(
            "arithmetic_error",
            signal.SIGFPE,
            ServerCrashed,
            "it divided by zero",
            "try another build of llama-server, and report it to its project",
            retryable=True,
        ),
        _signal(
            "bus_error",
            signal.SIGBUS,
            ServerCrashed,
            "a part of the model file could not be read: it became shorter, or its disk fails",
            "check the file and its disk; fetch the file again, or load it without mmap",
            retryable=False,
        ),
        _signal(
            "cpu_time_limit",
            signal.SIGXCPU,
            ServerCrashed,
            "it used up the processor time that it may use",
            "raise the limit: `ulimit -t`",
            retryable=False,
        ),
        _signal(
            "file_size_limit",
            signal.SIGXFSZ,
            ServerCrashed,
            "a file became larger than it may be",
            "raise the limit: `ulimit -f`",
            retryable=False,
        ),
        _signal(
            "forbidden_call",
            signal.SIGSYS,
            ServerCrashed,
            "it made a system call that is forbidden here: a container's seccomp profile does that",
            "run the container with another profile; ROCm needs seccomp=unconfined",
            retryable=False,
        ),
    )
)
# Those that come from outside. Who is killed has not said why: what it printed before is about
# something else.
FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

# In this order; the first that matches a line wins.
RULES: tuple[Rule, ...] = (*_FILE, *_MEMORY, *_GPU, *_SYSTEM, *_HINTS, *_FLAGS)
