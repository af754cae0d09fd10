"""Checks of the llama-server that would be used. Pure: it has been asked already."""

from __future__ import annotations

from rocllm.doctor.types import Facts, Verdict, fail, ok, unknown
from rocllm.errors import RocllmError

NOT_HERE = "it is not looked at on another machine"


def in_one_line(error: RocllmError) -> str:
    """What failed and why."""
    return "; ".join([error.what, *(error.why or "").splitlines()])


def check_llama_server(facts: Facts) -> Verdict:
    """There is a llama-server, and it runs."""
    engine = facts.engine
    if engine is None:
        return unknown(NOT_HERE)
    if engine.error is not None:
        return fail(in_one_line(engine.error), engine.error.remedy)
    if engine.binary is None:
        return unknown("not looked for")
    binary = engine.binary
    return ok(f"{binary.kind} {binary.version}, {binary.path} ({binary.found_by})")


def check_server_devices(facts: Facts) -> Verdict:
    """llama-server sees the chosen GPU, and no other, under the mask that rocllm sets."""
    engine, chosen = facts.engine, facts.choice.devices
    if engine is None or engine.binary is None:
        return unknown("no llama-server to ask" if facts.here else NOT_HERE)
    if not chosen:
        return unknown("no GPU is chosen, so llama-server is not asked")
    wanted = ", ".join(device.label for device in chosen)
    if engine.listing_error is not None:
        error = engine.listing_error
        return fail(f"it could not be asked: {in_one_line(error)}", error.remedy)
    if not engine.listed:
        said = f"; it said: {' / '.join(engine.words)}" if engine.words else ""
        return fail(
            f"{wanted} is chosen, and llama-server sees no GPU{said}",
            "see the failed checks above; without one, the build is not for this ROCm",
            f"ROCR_VISIBLE_DEVICES={chosen[0].ordinal} HSAKMT_DEBUG_LEVEL=6 llama-server "
            "--list-devices",
        )
    seen = ", ".join(f"{device.name} ({device.description})" for device in engine.listed)
    if len(engine.listed) != len(chosen):
        return fail(f"{wanted} is chosen, and llama-server sees {seen}", "see `rocllm devices`")
    return ok(seen)
