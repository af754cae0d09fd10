"""Causes in the model file and in the memory that it takes: data of `diagnose`."""

from __future__ import annotations

from rocllm.errors import (
    InvalidGGUF,
    ModelFileError,
    ModelNotFound,
    OutOfMemory,
    StartFailed,
    UnsupportedArchitecture,
)
from rocllm.server._rule import Rule, rule

_FETCH = "fetch the file again; `rocllm show FILE` says more"

FILE = (
    rule(
        "unknown_architecture",
        "unknown model architecture: 'lxama'",
        r"un(?:known|supported) model architecture: '(?P<arch>[^']*)'",
        UnsupportedArchitecture,
        "this llama.cpp does not know the model architecture {arch!r}",
        "use a newer llama-server, or another model",
    ),
    rule(
        "truncated_file",
        "tensor 'blk.16.ffn_down.weight' data is not within the file bounds, model is corrupted or "
        "incomplete",
        r"tensor '(?P<tensor>[^']*)' data is not within the file bounds",
        InvalidGGUF,
        "the file ends before the data of tensor {tensor!r}: it is incomplete",
        "fetch the file again",
    ),
    rule(
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
    rule(
        "missing_file",
        "failed to open GGUF file '/models/m.gguf' (No such file or directory)",
        r"failed to open (?:GGUF file )?'?(?P<file>[^':]+).*No such file or directory",
        ModelNotFound,
        "there is no file {file!r}",
        "it may have been removed meanwhile: give the path of one that is there",
    ),
    rule(
        "unreadable_file",
        "failed to open GGUF file '/models/m.gguf' (Permission denied)",
        r"failed to open (?:GGUF file )?'?(?P<file>[^':]+).*Permission denied"
        r"|error loading model: (?:read|seek|ftell|lseek) error: ",
        ModelFileError,
        "the system does not let the server read the file",
        "check its permissions, and the disk (dmesg) if those are right",
    ),
    rule(
        "bad_template",
        "srv          init: init: chat template parsing error: std::exception",
        r"chat template parsing error|failed to initialize chat template",
        ModelFileError,
        "this llama.cpp cannot read the chat template in the file",
        "use a newer llama-server, or fetch the model again: `rocllm show FILE --template` prints "
        "its template",
    ),
    # Not every file system can map files into memory: some of FUSE and of network shares cannot.
    rule(
        "mmap_failed",
        "error loading model: mmap failed: No such device",
        r"mmap failed: (?!Cannot allocate memory)|not \d+ byte aligned, cannot mmap",
        ModelFileError,
        "the file cannot be mapped into memory where it lies",
        "copy it to a local disk, or use load_mode='none'",
    ),
    rule(
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

# The last of all rules: others say why.
LOAD_FAILED = rule(
    "load_failed",
    "llama_model_load: error loading model: done_getting_tensors: ...",
    r"error loading model: (?P<said>.+)|gguf_init_from_\w+: (?P<said2>.+)",
    StartFailed,
    "llama.cpp cannot load the model",
    "use a newer llama-server; if that does not help, fetch the file again",
)

SMALLER = (
    "use a smaller ctx_size, fewer slots (parallel), a smaller model or quantisation, or fewer "
    "GPU layers"
)

MEMORY = (
    # Before the next two: it is said after them, and tells what the memory was for.
    rule(
        "out_of_context_memory",
        "failed to initialize the context: failed to allocate buffer for kv cache",
        r"failed to allocate (?:buffer for (?:kv|rs) cache|compute (?:pp |tg )?buffers"
        r"|output buffer of size)|failed to reserve (?:initial output buffer|graph for)",
        OutOfMemory,
        "the weights fitted; the memory that the context and its buffers need is not free",
        "use a smaller ctx_size or fewer slots (parallel)",
    ),
    rule(
        "out_of_host_memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        r"bad_alloc|(?<!/dev/kfd read-write: )[Cc]annot allocate memory(?! in static TLS)"
        r"|\bMemoryError\b|(?:unable|failed) to allocate (?:CPU\w*|\w+_Host) buffer"
        r"|ErrorOutOfHostMemory|failed to allocate +[\d.]+ MB|posix_memalign failed with error 12"
        r"|insufficient memory \(attempted to allocate|_PyErr_NoMemory"
        r"|GGML_ASSERT\(ctx->mem_buffer != NULL\) failed"
        r"|failed to map segment from shared object(?!: (?:Operation not|Permission))",
        OutOfMemory,
        "the machine's memory, or what this process may use of it, is not enough",
        f"{SMALLER}; `ulimit -v` shows whether there is a limit",
    ),
    rule(
        "out_of_device_memory",
        "allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory",
        r"(?:cudaMalloc|hipMalloc)\w* failed: out of memory|(?:ROCm|HIP|CUDA) error: out of memory"
        r"|(?:unable|failed) to allocate \S+ buffer|ErrorOutOfDeviceMemory|OutOfDeviceMemoryError"
        r"|ggml_vulkan: Device memory allocation of size \d+ failed"
        r"|aborting with error : HSA_STATUS_ERROR_OUT_OF_RESOURCES",
        OutOfMemory,
        "the memory that the model, its context and its buffers need is not free on the device",
        SMALLER,
    ),
)

# Found by the control group or the kernel's log, and not by what the server said.
KILLED_BY_OOM = Rule(
    "killed_by_oom",
    "SIGKILL, and a kill for want of memory that the kernel has counted or logged",
    None,
    OutOfMemory,
    "the kernel killed it because memory ran out",
    f"{SMALLER}; or raise the limit of its control group, if that is what ran out",
)
