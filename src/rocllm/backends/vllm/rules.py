"""What a vLLM server that ended may have said, and what that means: a table for `diagnose`.

The examples are those of vLLM 0.32 on the CPU, recorded, but for the three that only a GPU can
give: these are from vLLM's and PyTorch's source.
"""

from __future__ import annotations

from rocllm.errors import (
    AddressInUse,
    BackendUnavailable,
    ModelFileError,
    OptionsError,
    OutOfMemory,
    ServerCrashed,
    StartFailed,
    UnsupportedArchitecture,
)
from rocllm.server import RULES as COMMON
from rocllm.server import Rule, rule

_LESS = "use a smaller ctx_size, or free memory"
_ARGUMENTS = "check ROCM_VLLM_ARGS; if it is not set, this vLLM is of a version that differs: use "
_NEWER = _ARGUMENTS + "vLLM 0.14 or newer"

_SPECIFIC: tuple[Rule, ...] = (
    rule(
        "missing_module",
        "Error while finding module specification for 'vllm.entrypoints.openai.api_server' "
        "(ModuleNotFoundError: No module named 'vllm')",
        r"No module named '(?P<module>[\w.]+)'",
        BackendUnavailable,
        "the Python has no module {module!r}",
        "install what is missing there, or set ROCM_VLLM_PYTHON to a Python that has vLLM",
    ),
    # PyTorch compiles for the first request of log probabilities, and a failure ends the engine.
    rule(
        "missing_compiler",
        "(Worker pid=20883) ERROR 11-24 05:35:35 [multiproc_executor.py:1063] "
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in "
        "torch._inductor.config.cpp.cxx: (None, 'g++')",
        r"InvalidCxxCompiler: No working C\+\+ compiler|Failed to find C compiler",
        StartFailed,
        "vLLM compiles parts of itself when they are first used, and there is no compiler",
        "install one (Debian: apt-get install g++)",
    ),
    rule(
        "missing_compiler",
        "(Worker pid=9573) ERROR 11-28 02:28:01 [multiproc_executor.py:1063] "
        "/home/ann/.cache/rocllm/torchinductor/6p/c6plv.main.cpp:46:10: fatal error: Python.h: No "
        "such file or directory",
        r"fatal error: Python\.h: No such file",
        StartFailed,
        "vLLM compiles parts of itself when they are first used, and Python has no headers here",
        "install them (Debian: apt-get install python3-dev)",
    ),
    rule(
        "bad_flag",
        "api_server.py: error: unrecognized arguments: --no-such-option",
        r"error: (?P<said>unrecognized arguments: .*|argument --\S+: .{1,200})",
        OptionsError,
        "vLLM refuses its arguments: {said}",
        _NEWER,
    ),
    rule(
        "ctx_too_long",
        "  Value error, User-specified max_model_len (20000) is greater than the derived "
        "max_model_len (max_position_embeddings=8192.0 or model_max_length=None in model's "
        "config.json).",
        r"max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len \("
        r"[\w.]+=(?P<most>\d+)",
        OptionsError,
        "a context of {asked} tokens was asked for, and the model was made for {most}",
        "use a smaller ctx_size",
    ),
    rule(
        "unknown_architecture",
        "  Value error, Model architectures ['LxamaForCausalLM'] are not supported for now. "
        "Supported architectures: dict_keys(['AfmoeForCausalLM',",
        r"(?:Model architectures \['|model type `)(?P<arch>[^'`]{1,80})"
        r"(?:'\] (?:are not supported|failed)|` but Transformers)",
        UnsupportedArchitecture,
        "this vLLM does not know the model architecture {arch!r}",
        "use a newer vLLM (and transformers), or another model",
    ),
    rule(
        "no_tokenizer",
        "ValueError: Couldn't instantiate the backend tokenizer from one of: ",
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for",
        ModelFileError,
        "the model's directory has no tokenizer, or a broken one",
        "fetch the model again, with tokenizer.json and tokenizer_config.json",
    ),
    rule(
        "bad_file",
        "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: "
        "incomplete metadata, file not fully covered",
        r"SafetensorError: (?P<said>.{1,200})",
        ModelFileError,
        "a file of the model is broken: {said}",
        "fetch the model again",
    ),
    rule(
        "out_of_context_memory",
        "ValueError: To serve at least one request with the model's max seq len (8192), (0.18 GiB "
        "KV cache is needed, which is larger than the available KV cache memory (0.09 GiB).",
        r"(?P<needed>[\d.]+ GiB) KV cache is needed, which is larger than the available KV cache "
        r"memory \((?P<free>[\d.]+ GiB)\)",
        OutOfMemory,
        "the cache of one request takes {needed}, and there is room for {free}",
        _LESS,
    ),
    rule(
        "out_of_context_memory",
        "ValueError: No available memory for the cache blocks. Try increasing "
        "`gpu_memory_utilization` when initializing the engine.",
        r"No available memory for the cache blocks",
        OutOfMemory,
        "weights and computation leave no memory for the cache",
        "use a smaller or quantised model, or several GPUs of the same kind",
    ),
    rule(
        "out_of_device_memory",
        "ValueError: Free memory on device cuda:0 (3.1/15.98 GiB) on startup is less than desired "
        "GPU memory utilization (0.9, 14.38 GiB).",
        r"Free memory on device \S+ \((?P<free>[\d.]+)/[\d.]+ GiB\) on startup is less than "
        r"desired GPU memory utilization",
        OutOfMemory,
        "only {free} GiB of the GPU are free: another program has taken memory meanwhile",
        "end it, and load the model again",
        retryable=True,
    ),
    rule(
        "out_of_device_memory",
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total "
        "capacity of 15.98 GiB of which 12.00 MiB is free.",
        r"(?:HIP|CUDA) out of memory\. Tried to allocate (?P<size>[\d.]+ \w+)",
        OutOfMemory,
        "the GPU has no memory left for {size} more",
        _LESS,
    ),
    rule(
        "out_of_host_memory",
        "ValueError: Available memory on node 0 (19.5/21.21 GiB) on startup is less than desired "
        "CPU memory utilization (0.92, 19.52 GiB).",
        r"Available memory on node \d+ \((?P<free>[\d.]+)/[\d.]+ GiB\).* is less than",
        OutOfMemory,
        "only {free} GiB of the host's memory are free",
        _LESS,
    ),
    rule(
        "bad_layout",
        "  Value error, Total number of attention heads (9) must be divisible by tensor parallel "
        "size (2).",
        r"attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size",
        OptionsError,
        "{heads} attention heads cannot be divided among so many GPUs",
        "choose a number of GPUs that divides it",
    ),
    rule(
        "open_files_limit",
        "OSError: [Errno 24] Too many open files: '/proc/self/stat'",
        r"(?<!`)OSError: \[Errno 24\]",
        StartFailed,
        "vLLM may not open more files",
        "raise the limit: ulimit -n 65535",
    ),
    rule(
        "address_in_use",
        "OSError: [Errno 98] Address already in use",
        r"\[Errno 98\]|address already in use",
        AddressInUse,
        "another process listens there",
        "choose another port, or leave host and port away: then a private socket is used",
        retryable=True,
    ),
)

# What says that it failed, and why in vLLM's own words.
_GENERAL = (
    rule(
        "refused",
        "  Value error, Total number of ... must be ... [type=value_error, input_value=ArgsKwargs",
        r"^\s+Value error, (?P<said>.{1,300}?)(?: \[type=|$)",
        StartFailed,
        "vLLM refuses: {said}",
        "see its last output in `.output`",
    ),
    rule(
        "failed",
        "(Worker pid=11227) ERROR 11-24 04:15:44 [multiproc_executor.py:953] RuntimeError: Cannot "
        "find any model weights with `bad/noweights`",
        r"^\((?:Vllm)?(?:Worker|EngineCore)[^)]*\) ERROR .*\] (?P<said>[\w.]*(?:Error|Exception): "
        r"(?!Engine core init|Worker failed|WorkerProc init|cancelled).{1,300})",
        ServerCrashed,
        "vLLM failed: {said}",
        "see its last output in `.output`",
        retryable=True,
    ),
    rule(
        "engine_died",
        "(EngineCore pid=10767) ERROR 11-24 04:01:51 [multiproc_executor.py:315] Worker proc "
        "VllmWorker-0 died unexpectedly (exit code: None), shutting down executor.",
        r"(?P<who>Worker proc \S+|Engine core proc \S+) died unexpectedly",
        ServerCrashed,
        "one of vLLM's processes ended unexpectedly: {who}",
        "look at what it said before, in `.output`, and at dmesg",
        retryable=True,
        outside=True,
    ),
    rule(
        "engine_died",
        "(EngineCore pid=10767) ERROR 11-24 04:01:51 [core.py:1512] EngineCore encountered a fatal "
        "error.",
        r"EngineCore encountered a fatal error|EngineDeadError",
        ServerCrashed,
        "vLLM's engine ended with an error",
        "look at what it said before, in `.output`",
        retryable=True,
        outside=True,
    ),
    # What is left when one of them was killed while loading: the others only see that it is gone.
    rule(
        "engine_died",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core "
        "proc(s): {'EngineCore': 1}",
        r"RuntimeError: Engine core initialization failed",
        ServerCrashed,
        "one of vLLM's processes ended unexpectedly; the kernel does that when memory runs out",
        "look at what it said before, in `.output`, and at dmesg",
        retryable=True,
        outside=True,
    ),
)

# vLLM warns at every start of what the common rule takes for the end: a limit that is low.
_COMMON = tuple(one for one in COMMON if one.id != "open_files_limit")

RULES: tuple[Rule, ...] = (*_SPECIFIC, *_COMMON, *_GENERAL)
