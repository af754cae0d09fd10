"""`rocllm run MODEL [PROMPT]`."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated, Any

import typer

from rocllm.cli import _arguments as arguments
from rocllm.cli._session import chosen, has_template, note, opened, say, timings_line
from rocllm.cli._terminal import escaped_json
from rocllm.client import TokenStream
from rocllm.errors import OptionsError
from rocllm.options import LoadOptions, SamplingOptions
from rocllm.results import Completion, Message
from rocllm.text import TextModel

HELP = """Answer one prompt.

The prompt is put through the model's chat template, if it has one; with --raw it is continued as it
is. Without PROMPT, or with -, it is read from standard input. The answer goes to standard output,
everything else to standard error. Control characters in it are shown where that is a terminal.
"""


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except ValueError as exc:
        raise typer.BadParameter(
            f"""it is not JSON: {exc}; for example: '{{"type": "object"}}'"""
        ) from exc
    if not isinstance(schema, dict):
        raise typer.BadParameter(f"it must be a JSON object, got {text!r}")
    return schema


def run(
    ctx: typer.Context,
    model: arguments.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The prompt; - or nothing: standard input."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="The whole result as JSON.")] = False,
    raw_output: arguments.RawOutput = False,
    quiet: arguments.Quiet = False,
    system: arguments.System = None,
    max_tokens: arguments.MaxTokens = 256,
    temperature: arguments.Temperature = 0.0,
    top_k: arguments.TopK = None,
    top_p: arguments.TopP = None,
    min_p: arguments.MinP = None,
    repeat_penalty: arguments.RepeatPenalty = None,
    seed: arguments.Seed = None,
    stop: arguments.Stop = None,
    json_schema: Annotated[
        Any, typer.Option(parser=_schema, metavar="JSON", help="A JSON schema for the answer.")
    ] = None,
    grammar: Annotated[
        str | None,
        typer.Option("--grammar", help="A GBNF grammar for the answer.", show_default=False),
    ] = None,
    backend: arguments.Backend = None,
    ctx_size: arguments.CtxSize = None,
    n_gpu_layers: arguments.NGpuLayers = None,
    device: arguments.Device = None,
    cache_type_k: arguments.CacheTypeK = None,
    cache_type_v: arguments.CacheTypeV = None,
    flash_attn: arguments.FlashAttn = None,
    load_mode: arguments.LoadMode = None,
    model_draft: arguments.ModelDraft = None,
    n_gpu_layers_draft: arguments.NGpuLayersDraft = None,
    threads: arguments.Threads = None,
    cpu_fallback: arguments.CpuFallback = False,
    llama_server: arguments.LlamaServer = None,
    host: arguments.Host = None,
    port: arguments.Port = None,
) -> None:
    """Load the model, print the answer as it comes, then a line of timings."""
    if raw and system is not None:
        raise OptionsError(
            "--system and --raw are both given",
            why="a system message has its place in the chat template, which --raw leaves out",
            remedy="give one of them, or put the text into the prompt",
        )
    load = chosen(LoadOptions, ctx.params)
    sampling = chosen(SamplingOptions, ctx.params)
    text = _prompt(prompt)
    with opened(model, load, quiet=quiet or json_output, backend=backend) as loaded:
        if not raw and not has_template(loaded):
            _without_template(system, quiet=quiet or json_output)
        with _stream(loaded, text, system, raw, sampling) as stream:
            if json_output:
                answer = _as_json(loaded, stream.read())
                document = json.dumps(answer, ensure_ascii=False, indent=2)
                typer.echo(escaped_json(document))
                return
            for token in stream:
                say(token, quiet=quiet, raw=raw_output)
        typer.echo()
        if not quiet:
            note(timings_line(stream.usage, stream.timings))


def _stream(
    model: TextModel, prompt: str, system: str | None, raw: bool, sampling: SamplingOptions
) -> TokenStream:
    if raw or not has_template(model):
        return model.generate(prompt, sampling=sampling)
    messages = [Message("system", system)] if system is not None else []
    return model.chat([*messages, Message("user", prompt)], sampling=sampling)


def _without_template(system: str | None, *, quiet: bool) -> None:
    if system is not None:
        raise OptionsError(
            "--system, but the model has no chat template",
            why="without one there is no place for a system message: the prompt is continued as "
            "it stands",
            remedy="put the text into the prompt, or use `rocllm chat`",
        )
    if not quiet:
        note("the model has no chat template: the prompt is continued as it stands")


def _prompt(argument: str | None) -> str:
    if argument is not None and argument != "-":
        text = argument
    else:
        if sys.stdin.isatty():
            note("reading the prompt from standard input; end it with Ctrl-D")
        # The newline with which a shell's pipe ends is not part of what the user means.
        text = sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n")
    if not text:
        raise OptionsError("the prompt is empty", remedy="give it as an argument, or pipe it in")
    return text


def _as_json(model: TextModel, completion: Completion) -> dict[str, Any]:
    info = model.info
    return {
        "model": str(info.path),
        "engine": info.engine,
        "devices": [device.pci_address for device in info.devices],
        "because": list(info.because),
        **dataclasses.asdict(completion),
    }
