"""What is read from the log of a load. The excerpts are of real servers at `-lv 4`."""

from __future__ import annotations

from rocllm.server.report import Buffer, LoadReport, LoadReportBuilder, UsedDevice

# xllamacpp 2026.10.11549, SmolLM2-135M on the CPU.
CPU = """\
0.00.003.110 I cmn  common_param:   - CPU     : AMD EPYC (24105 MiB, 24105 MiB free)
0.00.295.090 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.310.882 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
0.00.315.664 I llama_context:        CPU  output buffer size =     0.38 MiB
0.00.315.892 I llama_kv_cache:        CPU KV buffer size =    11.25 MiB
0.00.315.899 I llama_kv_cache: size =   11.25 MiB (   256 cells,  30 layers,  2/2 seqs)
0.00.332.992 I sched_reserve:        CPU compute buffer size =    14.89 MiB
0.00.370.351 I srv    load_model: initializing, n_slots = 2, n_ctx_slot = 256, kv_unified = 'false'
"""

# llama-server b11434 with an RPC device.
RPC = """\
0.00.068.253 I llama_prepare_model_devices: using device RPC0 (127.0.0.1:8230) (unknown id) - \
24105 MiB free
0.00.187.239 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.221.674 I load_tensors: offloaded 31/31 layers to GPU
0.00.221.687 I load_tensors:   CPU_Mapped model buffer size =    28.69 MiB
0.00.221.689 I load_tensors: RPC0[127.0.0.1:8230] model buffer size =    92.10 MiB
0.00.405.662 I llama_context:        CPU  output buffer size =     0.38 MiB
0.00.422.806 I llama_kv_cache: RPC0[127.0.0.1:8230] KV buffer size =    11.25 MiB
0.00.440.415 I sched_reserve: RPC0[127.0.0.1:8230] compute buffer size =    13.76 MiB
0.00.440.446 I sched_reserve:        CPU compute buffer size =     4.77 MiB
0.00.510.039 I srv    load_model: initializing, n_slots = 2, n_ctx_slot = 256, kv_unified = 'false'
"""

# The same with the model as its own draft, 10 of its layers on the device, and a projector.
COMPANIONS = """\
0.00.160.529 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.164.529 I load_tensors: offloaded 31/31 layers to GPU
0.00.164.544 I load_tensors: RPC0[127.0.0.1:8231] model buffer size =    92.10 MiB
0.00.304.939 I llama_kv_cache: RPC0[127.0.0.1:8231] KV buffer size =    11.25 MiB
0.00.338.605 I common_speculative_init_result: loading draft model '/m/SmolLM2-135M.gguf'
0.00.406.726 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.418.076 I load_tensors: offloaded 10/31 layers to GPU
0.00.418.084 I load_tensors: RPC0[127.0.0.1:8231] model buffer size =    47.71 MiB
0.00.530.357 I llama_kv_cache: RPC0[127.0.0.1:8231] KV buffer size =     3.38 MiB
0.00.534.191 I clip_ctx: CLIP using RPC0[127.0.0.1:8231] backend
0.00.534.892 I load_hparams: model size:         78.77 MiB
0.00.666.505 I reserve_compute_meta: RPC0[127.0.0.1:8231] compute buffer size =   121.25 MiB
0.00.689.714 I srv    load_model: initializing, n_slots = 1, n_ctx_slot = 512, kv_unified = 'false'
"""

# xllamacpp 2026.10.11549, a draft model with another vocabulary.
UNUSED_DRAFT = """\
0.00.172.209 I common_speculative_init_result: loading draft model '/m/tiny.gguf'
0.00.201.136 E spec common_specu: the target and draft vocabs are not compatible
0.00.201.769 E srv    load_model: failed to initialize speculative decoding context: \
draft model vocab type must match target model to use speculation
"""


def report(log: str) -> LoadReport:
    """The report after all lines."""
    builder = LoadReportBuilder()
    for line in log.splitlines():
        builder.feed(line)
    return builder.report()


def mib(size: float) -> int:
    """Bytes."""
    return round(size * 2**20)


def test_nothing_said_is_nothing_known() -> None:
    """No zeros in the place of unknown numbers."""
    assert report("") == LoadReport()
    assert report("hello\n\n\x00\n") == LoadReport()


def test_a_load_on_the_cpu() -> None:
    """No device, buffers in order, slots and their context."""
    assert report(CPU) == LoadReport(
        buffers=(
            Buffer("CPU_Mapped", "model", mib(92.10)),
            Buffer("CPU", "output", mib(0.38)),
            Buffer("CPU", "KV", mib(11.25)),
            Buffer("CPU", "compute", mib(14.89)),
        ),
        n_slots=2,
        n_ctx_slot=256,
    )


def test_a_load_on_another_device() -> None:
    """The device without a PCI address, its buffers, and the layers on it."""
    said = report(RPC)
    assert said.devices == (UsedDevice("RPC0", "127.0.0.1:8230", None),)
    assert (said.offloaded_layers, said.total_layers) == (31, 31)
    kinds = [buffer.kind for buffer in said.buffers if buffer.device.startswith("RPC0")]
    assert kinds == ["model", "KV", "compute"]


def test_the_rehearsal_of_the_fit_does_not_count() -> None:
    """With `--fit on` the same lines come twice; only the last load is real."""
    assert report(RPC + CPU).buffers == report(CPU).buffers


def test_a_rocm_device_has_its_address() -> None:
    """Also with parentheses in its name, and with the function name of older builds."""
    said = report(
        "0.00.1 I llama_model_load_from_file_impl: using device ROCm0 (AMD Radeon RX 7900 XTX) "
        "(0000:03:00.0) - 24000 MiB free\n"
        "llama_prepare_model_devices: using device Vulkan0 (AMD Radeon RX 7900 XTX (RADV NAVI31)) "
        "(0000:0d:00.0) - 24000 MiB free\n"
        "llama_model_load_from_file_impl: using device ROCm1 (AMD Radeon Graphics) - 512 MiB free\n"
    )
    assert said.devices == (
        UsedDevice("ROCm0", "AMD Radeon RX 7900 XTX", "0000:03:00.0"),
        UsedDevice("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)", "0000:0d:00.0"),
        UsedDevice("ROCm1", "AMD Radeon Graphics", None),
    )


def test_other_kinds_of_buffers() -> None:
    """The state of recurrent models, and the lines without a prefix of builds before 2026."""
    said = report(
        "llama_memory_recurrent:      ROCm0 RS buffer size =    75.38 MiB\n"
        "load_tensors:    ROCm_Host model buffer size =   102.54 MiB\n"
    )
    assert said.buffers == (
        Buffer("ROCm0", "RS", mib(75.38)),
        Buffer("ROCm_Host", "model", mib(102.54)),
    )


def test_slots_of_older_builds() -> None:
    """Number and context stood on lines of their own."""
    said = report(
        "srv          init: initializing slots, n_slots = 4\n"
        "slot         init: id  0 | task -1 | new slot n_ctx_slot = 1024\n"
    )
    assert (said.n_slots, said.n_ctx_slot) == (4, 1024)


def test_what_is_loaded_beside_the_model() -> None:
    """Each buffer belongs to somebody, and the layers are those of the model."""
    told = report(COMPANIONS)
    device = "RPC0[127.0.0.1:8231]"
    assert told.buffers == (
        Buffer(device, "model", mib(92.10)),
        Buffer(device, "KV", mib(11.25)),
        Buffer(device, "model", mib(47.71), "draft"),
        Buffer(device, "KV", mib(3.38), "draft"),
        Buffer(device, "model", mib(78.77), "projector"),
        Buffer(device, "compute", mib(121.25), "projector"),
    )
    assert (told.offloaded_layers, told.total_layers) == (31, 31)
    assert told.draft_problem is None


def test_a_draft_that_is_not_used() -> None:
    """The server goes on without it, and says so in one line of many."""
    assert report(UNUSED_DRAFT).draft_problem == (
        "draft model vocab type must match target model to use speculation"
    )
