"""The command line by capability, and the environment of the child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rocllm.endpoint import Endpoint
from rocllm.errors import StartFailed
from rocllm.memory import Settings
from rocllm.server import LaunchCommand, LaunchOptions, ServerBinary, build_command
from rocllm.server.command import padded_ctx

NEW_FLAGS = {
    **dict.fromkeys(("--model", "--alias", "--host", "--port", "--cors-origins"), "X"),
    **dict.fromkeys(("--ctx-size", "--parallel", "--batch-size", "--ubatch-size"), "N"),
    **dict.fromkeys(("--n-gpu-layers", "--threads", "--cache-ram", "--log-verbosity"), "N"),
    "--ctx-checkpoints": "N",
    **dict.fromkeys(("--no-kv-unified", "--jinja", "--metrics", "--slots", "--offline"), ""),
    **dict.fromkeys(("--no-ui", "--no-webui"), ""),
    **dict.fromkeys(("--cache-type-k", "--cache-type-v"), "TYPE"),
    "--device": "<dev1,dev2,..>",
    "--split-mode": "{none,layer,row,tensor}",
    "--fit": "[on|off]",
    "--flash-attn": "[on|off|auto]",
    "--sse-ping-interval": "N",
    "--threads-http": "N",
    "--log-colors": "[on|off|auto]",
}
# What a build of the summer of 2025 had.
OLD_FLAGS = {
    **dict.fromkeys(("--model", "--alias", "--host", "--port"), "X"),
    **dict.fromkeys(("--ctx-size", "--parallel", "--batch-size", "--ubatch-size"), "N"),
    **dict.fromkeys(("--n-gpu-layers", "--threads", "--log-verbosity"), "N"),
    **dict.fromkeys(("--flash-attn", "--jinja", "--metrics", "--slots", "--no-webui"), ""),
    **dict.fromkeys(("--cache-type-k", "--cache-type-v"), "TYPE"),
    "--device": "<dev1,dev2,..>",
    "--split-mode": "{none,layer,row}",
}
UNIX = Endpoint.unix("/run/x/s.sock")


def build(flags: dict[str, str] = NEW_FLAGS, **changes: Any) -> LaunchCommand:
    """The command for ordinary values, with `changes` of arguments, options or settings."""
    arguments: dict[str, Any] = {
        "endpoint": UNIX,
        "environ": {"PATH": "/usr/bin"},
        "config_home": Path("/run/x/config"),
    }
    options: dict[str, Any] = {
        "model_path": Path("/models/m.gguf"),
        "alias": "m",
        "device_names": ("ROCm0",),
    }
    settings: dict[str, Any] = {"ctx_size": 4096, "n_gpu_layers": -1}
    for name, value in changes.items():
        of_options = name in LaunchOptions.__dataclass_fields__
        (arguments if name in arguments else options if of_options else settings)[name] = value
    server = ServerBinary("native", ("/opt/llama-server",), "/opt/llama-server", "1", flags, "x")
    launch = LaunchOptions(settings=Settings(**settings), **options)
    return build_command(server, launch, **arguments)


def test_a_new_build_on_one_gpu() -> None:
    """Every flag that matters, in full."""
    assert " ".join(build().argv) == (
        "/opt/llama-server --model /models/m.gguf --alias m --host /run/x/s.sock --ctx-size 4096 "
        "--parallel 1 --no-kv-unified --batch-size 2048 --ubatch-size 512 --n-gpu-layers 999 "
        "--device ROCm0 --split-mode none --fit off --flash-attn auto --cache-type-k f16 "
        "--cache-type-v f16 --ctx-checkpoints 32 --cache-ram 0 --sse-ping-interval 5 "
        "--threads-http 65 --jinja --metrics --slots --offline --no-ui --log-verbosity 4 "
        "--log-colors off"
    )


def test_an_old_build_gets_only_what_it_knows() -> None:
    """No flag that it would refuse, and flash attention without the value it would misread."""
    argv = build(OLD_FLAGS).argv
    assert {flag for flag in argv if flag.startswith("--")} <= set(OLD_FLAGS)
    assert "--no-webui" in argv
    assert "--flash-attn" not in argv
    assert "--flash-attn" not in build(OLD_FLAGS, flash_attn="off").argv
    on = build(OLD_FLAGS, flash_attn="on").argv
    assert on[on.index("--flash-attn") + 1].startswith("--")


@pytest.mark.parametrize("flag", ["--model", "--host", "--ctx-size", "--parallel"])
def test_a_flag_that_cannot_be_done_without(flag: str) -> None:
    """A build without it is refused, by name."""
    flags = {name: value for name, value in NEW_FLAGS.items() if name != flag}
    with pytest.raises(StartFailed, match=f"has no flag {flag}"):
        build(flags)


def value_of(flag: str, command: LaunchCommand) -> str | None:
    """What follows the flag."""
    argv = command.argv
    return argv[argv.index(flag) + 1] if flag in argv else None


def test_tcp() -> None:
    """Host and port are given, web pages are kept out, and the key is not on the command line."""
    command = build(endpoint=Endpoint.tcp("127.0.0.1", 8123, api_key="secret-key"))
    assert value_of("--host", command) == "127.0.0.1"
    assert value_of("--port", command) == "8123"
    assert value_of("--cors-origins", command) == "localhost"
    assert command.environ["LLAMA_API_KEY"] == "secret-key"
    assert not any("secret-key" in argument for argument in command.argv)
    assert "--port" not in build().argv


def test_the_cpu() -> None:
    """No device is used, whatever the build could see."""
    command = build(device_names=(), n_gpu_layers=0)
    assert value_of("--device", command) == "none"
    assert value_of("--n-gpu-layers", command) == "0"
    assert value_of("--split-mode", command) is None


def test_several_gpus() -> None:
    """All are named, and the model is split as llama.cpp does by itself."""
    command = build(device_names=("ROCm0", "ROCm1"), n_gpu_layers=20)
    assert value_of("--device", command) == "ROCm0,ROCm1"
    assert value_of("--split-mode", command) is None
    assert value_of("--n-gpu-layers", command) == "20"


def test_layers_are_split_as_planned() -> None:
    """The shares of the plan are passed on, so that the server does not choose its own."""
    flags = {**NEW_FLAGS, "--tensor-split": "N0,N1,..."}
    argv = build(flags, device_names=("ROCm0", "ROCm1"), split=(20, 13)).argv
    assert argv[argv.index("--tensor-split") + 1] == "20,13"
    assert argv[argv.index("--split-mode") + 1] == "layer"


@pytest.mark.parametrize(
    ("ctx_size", "parallel", "total"),
    [(1, 1, 256), (256, 1, 256), (257, 1, 512), (4000, 3, 12288), (4096, 4, 16384)],
)
def test_each_slot_gets_the_context_asked_for(ctx_size: int, parallel: int, total: int) -> None:
    """The server divides the total, in steps of 256."""
    command = build(ctx_size=ctx_size, parallel=parallel)
    assert value_of("--ctx-size", command) == str(total)
    assert value_of("--parallel", command) == str(parallel)
    assert total // parallel == padded_ctx(ctx_size) >= ctx_size


def test_threads_only_when_asked_for() -> None:
    """`None` leaves the choice to llama.cpp."""
    assert value_of("--threads", build()) is None
    assert value_of("--threads", build(threads=3)) == "3"


def test_the_key_is_not_shown() -> None:
    """A command ends up in logs and tracebacks."""
    command = build(endpoint=Endpoint.tcp("127.0.0.1", 8123, api_key="secret-key"))
    assert "secret-key" not in repr(command)


def test_the_environment_is_scrubbed() -> None:
    """What it needs stays, the rest is gone, and the given one is whole."""
    environ = {
        "PATH": "/usr/bin",
        "HOME": "/home/u",
        "XDG_CONFIG_HOME": "/home/u/.config",
        "XDG_CACHE_HOME": "/home/u/.cache",
        "ROCR_VISIBLE_DEVICES": "GPU-1",
        "LLAMA_ARG_CTX_SIZE": "7",
        "LLAMA_API_KEY": "the user's",
        "LLAMA_SERVER_ROUTER_PORT": "1",
        "HF_TOKEN": "secret",
        "MTMD_BACKEND_DEVICE": "x",
    }
    before = dict(environ)
    built = dict(build(environ=environ).environ)
    assert built.pop("PATH").endswith(":/usr/bin")
    assert built == {
        "HOME": "/home/u",
        "XDG_CONFIG_HOME": "/run/x/config",
        "XDG_CACHE_HOME": "/home/u/.cache",
        "ROCR_VISIBLE_DEVICES": "GPU-1",
        "LC_MESSAGES": "C",
    }
    assert environ == before


def test_what_the_server_says_is_english() -> None:
    """Whatever the user's language: a diagnosis reads it. His characters stay."""
    child = build(environ={"LC_ALL": "de_DE.UTF-8", "LC_MESSAGES": "de_DE.UTF-8"}).environ
    assert (child.get("LC_ALL"), child["LC_MESSAGES"]) == (None, "C")
    assert child["LC_CTYPE"] == "de_DE.UTF-8"


def test_an_odd_model_name_is_one_argument() -> None:
    """No quoting, no splitting, no flag made of a name."""
    command = build(model_path=Path("/m/a b; --nope.gguf"), alias="--help me")
    assert value_of("--model", command) == "/m/a b; --nope.gguf"
    assert value_of("--alias", command) == "--help me"


NEW_COMPANIONS = {
    **NEW_FLAGS,
    "--mmproj": "FILE",
    "--no-mmproj-offload": "",
    **dict.fromkeys(("--model-draft", "--device-draft"), "X"),
    **dict.fromkeys(("--n-gpu-layers-draft", "--spec-draft-n-max", "--draft-max"), "N"),
    **dict.fromkeys(("--cache-type-k-draft", "--cache-type-v-draft"), "TYPE"),
    "--spec-type": "none,draft-simple,draft-eagle3",
}
# Of the summer of 2025: no kinds of guessing, no device, no cache types.
OLD_COMPANIONS = {
    **OLD_FLAGS,
    "--mmproj": "FILE",
    "--model-draft": "X",
    **dict.fromkeys(("--n-gpu-layers-draft", "--draft-max"), "N"),
}


def test_a_draft_model() -> None:
    """Where the plan wants it, and used: a new build must be told how."""
    draft = {"model_draft": Path("/m/d.gguf"), "draft_n_max": 3, "n_gpu_layers_draft": -1}
    command = build(NEW_COMPANIONS, **draft)
    assert value_of("--model-draft", command) == "/m/d.gguf"
    assert value_of("--n-gpu-layers-draft", command) == "999"
    assert value_of("--device-draft", command) == "ROCm0"
    assert value_of("--spec-type", command) == "draft-simple"
    assert value_of("--spec-draft-n-max", command) == "3"
    assert value_of("--cache-type-k-draft", command) == "f16"
    assert "--draft-max" not in command.argv  # there in name only: it ends the server

    old = build(OLD_COMPANIONS, **draft)
    assert value_of("--draft-max", old) == "3"
    assert {flag for flag in old.argv if flag.startswith("--")} <= set(OLD_COMPANIONS)
    on_cpu = build(NEW_COMPANIONS, device_names=(), model_draft=Path("d"), n_gpu_layers_draft=0)
    assert value_of("--device-draft", on_cpu) == "none"
    assert value_of("--n-gpu-layers-draft", on_cpu) == "0"
    assert not any("draft" in argument for argument in build(NEW_COMPANIONS).argv)


def test_a_projector() -> None:
    """On the first GPU by itself; without one it is kept from using any."""
    command = build(NEW_COMPANIONS, mmproj="/m/p.gguf")
    assert value_of("--mmproj", command) == "/m/p.gguf"
    assert "--no-mmproj-offload" not in command.argv
    on_cpu = build(NEW_COMPANIONS, mmproj="/m/p.gguf", device_names=())
    assert "--no-mmproj-offload" in on_cpu.argv
    assert not any("mmproj" in argument for argument in build(NEW_COMPANIONS).argv)


@pytest.mark.parametrize(("option", "flag"), [("mmproj", "mmproj"), ("model_draft", "model-draft")])
def test_a_build_without_companions(option: str, flag: str) -> None:
    """It is refused with the flag and the remedy; nothing is left away silently."""
    with pytest.raises(StartFailed, match=f"has no flag --{flag}(.|\n)*use a newer llama-server"):
        build(NEW_FLAGS, **{option: "/m/x.gguf"})


def test_what_pays_for_many_short_prompts() -> None:
    """A cache that can be gone back in, and a place for saved slots; where the build knows them."""
    flags = {**NEW_FLAGS, "--swa-full": "", "--slot-save-path": "PATH"}
    folder = Path("/run/x/slots")
    argv = build(flags, swa_full=True, slot_save_path=folder).argv
    assert "--swa-full" in argv
    assert argv[argv.index("--slot-save-path") + 1] == "/run/x/slots/"
    assert not {"--swa-full", "--slot-save-path"} & set(build(flags).argv)
    old = build(OLD_FLAGS, swa_full=True, slot_save_path=folder).argv
    assert not {"--swa-full", "--slot-save-path"} & set(old)
