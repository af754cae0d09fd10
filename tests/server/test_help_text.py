"""What a help text says of flags."""

from __future__ import annotations

import pytest

from rocllm.server.help_text import parse_help

# Lines of the real texts of b11434 and b10434 (a Vulkan build): they agree on these.
NEW = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from mode
                                        (env: LLAMA_ARG_CTX_SIZE)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'a
                                        (env: LLAMA_ARG_FLASH_ATTN)
--perf, --no-perf                       whether to enable internal libllama performance timings (def
                                        false)
-dev,  --device <dev1,dev2,..>          comma-separated list of devices to use for offloading (none
                                        offload)
                                        use --list-devices to see a list of available devices
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM, either an exact numb
-sm,   --split-mode {none,layer,row,tensor}
                                        how to split the model across multiple GPUs, one of:
                                        - none: use one GPU only
-fit,  --fit [on|off]                   whether to adjust unset arguments to fit in device memory ('
--control-vector-layer-range START END
                                        layer range to apply the control vector(s) to, start and end
                                        inclusive

----- example-specific params -----

-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        use single unified KV buffer shared across all sequences (de
--host HOST                             ip address to listen, or bind to an UNIX socket if the addre
                                        with .sock (default: 127.0.0.1)
--ui,  --webui, --no-ui, --no-webui     whether to enable the Web UI (default: enabled)
                                        (env: LLAMA_ARG_UI)
--fim-qwen-1.5b-default                 use default Qwen 2.5 Coder 1.5B (note: can download weights
"""

# The same options before September 2025.
OLD = """\
-c,    --ctx-size N                     size of the prompt context (default: 4096, 0 = loaded from m
-fa,   --flash-attn                     enable Flash Attention (default: disabled)
                                        (env: LLAMA_ARG_FLASH_ATTN)
--no-webui                              Disable the Web UI (default: enabled)
"""


@pytest.mark.parametrize(
    ("flag", "argument"),
    [
        ("-h", ""),
        ("--usage", ""),
        ("-c", "N"),
        ("--ctx-size", "N"),
        ("--flash-attn", "[on|off|auto]"),
        ("--perf", ""),
        ("--no-perf", ""),
        ("--device", "<dev1,dev2,..>"),
        ("--gpu-layers", "N"),
        ("--n-gpu-layers", "N"),
        ("--split-mode", "{none,layer,row,tensor}"),
        ("-fit", "[on|off]"),
        ("--control-vector-layer-range", "START END"),
        ("-no-kvu", ""),
        ("--no-kv-unified", ""),
        ("--host", "HOST"),
        ("--no-ui", ""),
        ("--no-webui", ""),
        ("--fim-qwen-1.5b-default", ""),
    ],
)
def test_flags_of_a_new_build(flag: str, argument: str) -> None:
    """Every spelling of a flag is known with the argument that it takes."""
    assert parse_help(NEW)[flag] == argument


def test_nothing_else_is_taken_for_a_flag() -> None:
    """Headings, explanations and lists in explanations are no flags."""
    assert len(parse_help(NEW)) == 29
    assert not any(" " in flag or flag.startswith("---") for flag in parse_help(NEW))


def test_flags_of_an_old_build() -> None:
    """Flash attention was a switch once, and the interface had another name."""
    flags = parse_help(OLD)
    assert flags["--flash-attn"] == ""
    assert "--no-webui" in flags
    assert "--no-ui" not in flags


@pytest.mark.parametrize("text", ["", "hello\n", "----- x -----\n", "- a list\n", "-1\n", "\n\n"])
def test_other_texts_have_no_flags(text: str) -> None:
    """A program that is no llama-server gives an empty answer, not an error."""
    assert parse_help(text) == {}
