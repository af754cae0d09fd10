"""Checks of what the user's environment asks for, and of the GPU that is used. Pure."""

from __future__ import annotations

from rocllm import env
from rocllm.devices._masks import apply_masks
from rocllm.doctor._bundles import covers
from rocllm.doctor._check_gpu import no_gpu
from rocllm.doctor._override import chip_for_rocm
from rocllm.doctor.types import Facts, Verdict, fail, ok, unknown, warn
from rocllm.units import format_bytes


def check_masks(facts: Facts) -> Verdict:
    """Masks that the user has set restrict the choice, as they restrict ROCm."""
    machine = facts.machine
    listed = [device for device in machine.devices if device.ordinal is not None]
    masks = " ".join(machine.masks)
    if not listed:
        return unknown(f"{masks}: {no_gpu(facts)}" if masks else no_gpu(facts))
    result = apply_masks(facts.environ, [device.uuid for device in listed])
    names = " ".join(mask.partition("=")[0] for mask in machine.masks)
    if not result.visible:
        why = f" ({result.problems[0].what})" if result.problems else ""
        return fail(
            f"{masks} hides every GPU{why}", "unset it, or name a GPU that exists", f"unset {names}"
        )
    if result.problems:
        problem = result.problems[0]
        return warn(problem.what, problem.remedy)
    left = [device for device in listed if device.ordinal in result.visible]
    hidden = len(listed) - len(left)
    evidence = f"{masks} leaves {len(left)} of {len(listed)} GPUs" if masks else "none set"
    if hidden and all(device.integrated for device in left):
        return warn(
            f"{evidence}: the discrete GPU is hidden",
            "unset it; rocllm hides the integrated GPU by itself",
            f"unset {names}",
        )
    return ok(evidence)


def check_override(facts: Facts) -> Verdict:
    """`HSA_OVERRIDE_GFX_VERSION` makes ROCm take every GPU for another chip."""
    names = sorted(name for name in facts.environ if name.startswith(env.HSA_OVERRIDE_GFX_VERSION))
    if not names:
        return ok("none set")
    shown = " ".join(f"{name}={facts.environ[name]}" for name in names)
    unset = f"unset {' '.join(names)}"
    devices = facts.choice.devices or facts.machine.devices
    targets = facts.engine_files.targets if facts.engine_files else None
    chip = devices[0].gfx_target if devices else None
    if targets is not None and chip is not None:
        if covers(targets, chip):
            return warn(
                f"{shown}, though llama-server has code for {chip}", "it is not needed", unset
            )
        taken = chip_for_rocm(devices[0], facts.environ)
        if covers(targets, chip) is False and taken is not None and covers(targets, taken):
            return ok(f"{shown}: llama-server has code for {taken}, and none for {chip}")
    return warn(
        f"{shown} makes ROCm take " + (f"{chip} for another chip" if chip else "GPUs for others"),
        "unset it unless llama-server lacks your chip; current builds have nearly all of them",
        unset,
    )


def check_choice(facts: Facts) -> Verdict:
    """The GPU that rocllm would use."""
    choice = facts.choice
    because = "; ".join(choice.because)
    if choice.devices:
        device = choice.devices[0]
        size = f", {format_bytes(device.usable_memory)}" if device.usable_memory else ""
        return ok(f"{device.gfx_target or 'unknown chip'}{size}: {because}")
    usable = [device for device in facts.machine.devices if device.ordinal is not None]
    if usable and choice.problem is None and facts.machine.visible:
        address = usable[0].pci_address or usable[0].ordinal
        return warn(
            f"the CPU: {because}",
            "to use the GPU all the same",
            f"rocllm run --device {address} MODEL",
        )
    return unknown("the CPU; another check says why" if usable else f"the CPU: {no_gpu(facts)}")
