"""Causes in GPUs, their driver and their libraries: data of `diagnose`."""

from __future__ import annotations

from rocllm.errors import (
    DeviceAccessDenied,
    NoDeviceFound,
    OffloadFailed,
    ServerCrashed,
    StartFailed,
)
from rocllm.server._rule import hint, rule

GPU = (
    rule(
        "gpu_reset",
        "HW Exception by GPU node-1 (Agent handle: 0x5ab48bbcc960) reason :GPU Hang",
        r"HW Exception by GPU node-(?P<node>\d+)",
        ServerCrashed,
        "{gpu} hung, and the driver has reset it",
        "look at dmesg; a newer kernel or GPU firmware may help, and so may less load on the GPU",
    ),
    rule(
        "device_lost",
        "terminate called after throwing an instance of 'vk::DeviceLostError'",
        r"vk::DeviceLostError|ErrorDeviceLost|ggml_vulkan: device lost|amdgpu: GPU reset begin"
        r"|\*ERROR\* ring \S+ timeout",
        ServerCrashed,
        "the GPU hung, and the driver has reset it",
        "look at dmesg; a newer kernel, Mesa or GPU firmware may help, and so may a smaller ubatch",
    ),
    rule(
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
    rule(
        "flash_attention_failed",
        "ggml_cuda_compute_forward: FLASH_ATTN_EXT failed",
        r"FLASH_ATTN_EXT failed|/fattn[\w-]*\.cuh?:\d+|\blaunch_fattn\b",
        ServerCrashed,
        "flash attention does not work with this model on this GPU",
        "use flash_attn='off'",
    ),
    rule(
        "flash_attention_needed",
        "quantized V cache requires flash_attn to be enabled",
        r"quantized V cache (?:was requested, but this )?requires (?:flash_attn|Flash Attention)"
        r"|V cache quantization requires flash_attn",
        StartFailed,
        "a quantised V cache needs flash attention, which is off or does not work here",
        "use flash_attn='on', or cache_type_v='f16'",
    ),
    rule(
        "no_rocblas_kernels",
        "rocBLAS error: Cannot read /opt/rocm/lib/rocblas/library/TensileLibrary.dat: Illegal seek "
        "for GPU arch : gfx1036",
        r"rocBLAS error: Cannot read .*TensileLibrary.* for GPU arch : (?P<gfx>gfx\w+)",
        StartFailed,
        "rocBLAS has no kernels for {gfx}",
        "hide that GPU (see `rocllm devices`), or use a newer ROCm or a Vulkan build",
    ),
    rule(
        "wrong_gfx",
        "ROCm error: invalid device function",
        r"ROCm error: (?:invalid device function|device kernel image is invalid)"
        r"|no kernel image is available for execution"
        r"|HSA_STATUS_ERROR_INVALID_(?:ISA|CODE_OBJECT)",
        StartFailed,
        "this llama-server was not built for this GPU",
        "use a build that lists the GPU's gfx target, or a Vulkan build",
    ),
    rule(
        "no_devices_for_rocblas",
        "rocBLAS error: Could not initialize Tensile host: No devices found",
        r"rocBLAS error: Could not initialize Tensile host",
        NoDeviceFound,
        "rocBLAS finds no GPU: none that this process may open is left",
        "`rocllm doctor` says what is in the way",
    ),
    rule(
        "gpu_error",
        "ROCm error: unspecified launch failure",
        r"(?:ROCm|HIP|CUDA) error(?:: |$)|ggml_cuda_compute_forward: \w+ failed"
        r"|aborting with error : HSA_STATUS_ERROR",
        ServerCrashed,
        "an operation on the GPU failed",
        "look at dmesg for the driver's own words; `rocllm doctor` checks the installation",
        retryable=True,
    ),
)

_DOCTOR = "`rocllm doctor` says what is in the way"

HINTS = (
    hint(
        "gpu_access_denied",
        "Unable to open /dev/kfd read-write: Permission denied",
        r"Unable to open /dev/kfd read-write|Failed to open /dev/dri/renderD\d+: Permission denied"
        r"|is not member of \"(?:render|video)\" group"
        r"|Call returned HSA_STATUS_ERROR_OUT_OF_RESOURCES",
        DeviceAccessDenied,
        "this user may not open the GPU's device files",
        _DOCTOR,
    ),
    hint(
        "driver_rejected",
        "modprobe: ERROR: could not insert 'amdgpu': Key was rejected by service",
        r"could not insert 'amdgpu': Key was rejected by service",
        NoDeviceFound,
        "Secure Boot does not let the kernel load the driver, which is not signed for it",
        "enrol its key (mokutil), or remove amdgpu-dkms and use the driver of the kernel",
    ),
    hint(
        "driver_not_loaded",
        "ROCk module is NOT loaded, possibly no GPU devices",
        r"ROCk module is NOT loaded",
        NoDeviceFound,
        "the amdgpu driver is not loaded",
        _DOCTOR,
    ),
    hint(
        "no_pcie_atomics",
        "kfd kfd: amdgpu: skipped device 1002:67df, PCI rejects atomics 730<0",
        r"skipped device (?P<pci_id>[0-9a-f]{4}:[0-9a-f]{4}), PCI rejects atomics",
        NoDeviceFound,
        "the driver skipped GPU {pci_id}: its PCIe slot has no atomic operations",
        "put it into a slot of the processor's own, or use a Vulkan build",
    ),
    hint(
        "gpu_partly_visible",
        "Failed to set mem policy for GPU [0x6b0d]",
        r"Failed to set mem policy for GPU",
        NoDeviceFound,
        "the container sees the GPU's driver, and not all of its device files",
        "give it the render nodes that belong to its GPUs; see `rocllm doctor`",
    ),
    hint(
        "bad_gfx_override",
        "HSA_OVERRIDE_GFX_VERSION 11.0 is invalid",
        r"HSA_OVERRIDE_GFX_VERSION (?P<value>\S+) is invalid",
        NoDeviceFound,
        "HSA_OVERRIDE_GFX_VERSION={value} is not a version",
        "unset it; this GPU may not need it at all",
    ),
    hint(
        "no_gpu_visible",
        "ggml_cuda_init: failed to initialize ROCm: no ROCm-capable device is detected",
        r"no ROCm-capable device is detected|failed to initialize ROCm: (?P<said>.+)",
        NoDeviceFound,
        "ROCm shows no GPU to the server",
        _DOCTOR,
    ),
    hint(
        "ignored_gtt_size",
        "amdgpu: unknown parameter 'gtt_size' ignored",
        r"amdgpu: unknown parameter '(?P<name>\w+)' ignored",
        StartFailed,
        "the kernel does not know amdgpu's parameter {name}: the GPU gets no more memory by it",
        "for gtt_size use ttm.pages_limit on the kernel's command line",
    ),
    hint(
        "not_a_gpu_build",
        "warning: no usable GPU found, --gpu-layers option will be ignored",
        r"no usable GPU found, --gpu-layers option will be ignored",
        OffloadFailed,
        "this llama-server was built without GPU support, or cannot load it",
        "install one that was built for ROCm, and set ROCM_LLAMA_SERVER_PATH to it",
    ),
)
