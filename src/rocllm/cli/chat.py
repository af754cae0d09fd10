"""`rocllm chat MODEL`."""

from __future__ import annotations

import contextlib
import sys

import typer

from rocllm.cli import _arguments as arguments
from rocllm.cli._session import chosen, has_template, note, opened, say, timings_line
from rocllm.cli._terminal import for_stream, one_line, visible
from rocllm.errors import RequestError, ServerError
from rocllm.options import LoadOptions, SamplingOptions
from rocllm.results import Message
from rocllm.text import TextModel

HELP = """Talk with a model.

It remembers the conversation. Ctrl-C stops an answer, Ctrl-D ends the program, /help lists the
commands.
"""

_COMMANDS = {
    "/help": "this list",
    "/clear": "begin a new conversation",
    "/system TEXT": "begin a new conversation with a system message",
    "/history": "show the conversation",
    "/info": "show the model, the device and the engine",
    "/exit": "leave (also Ctrl-D)",
}
_MULTILINE = '"""'


def chat(
    ctx: typer.Context,
    model: arguments.Model,
    raw_output: arguments.RawOutput = False,
    quiet: arguments.Quiet = False,
    system: arguments.System = None,
    max_tokens: arguments.MaxTokens = -1,
    temperature: arguments.Temperature = 0.0,
    top_k: arguments.TopK = None,
    top_p: arguments.TopP = None,
    min_p: arguments.MinP = None,
    repeat_penalty: arguments.RepeatPenalty = None,
    seed: arguments.Seed = None,
    stop: arguments.Stop = None,
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
) -> None:
    """Load the model and answer until the user leaves."""
    load = chosen(LoadOptions, ctx.params)
    sampling = chosen(SamplingOptions, ctx.params)
    with opened(model, load, quiet=quiet, backend=backend) as loaded:
        if not quiet:
            if not has_template(loaded):
                note("the model has no chat template: llama-server uses ChatML")
            note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands")
        _Conversation(loaded, sampling, system, quiet=quiet, raw=raw_output).run()


class _Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(
        self,
        model: TextModel,
        sampling: SamplingOptions,
        system: str | None,
        *,
        quiet: bool,
        raw: bool,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.quiet = quiet
        self.raw = raw
        self.messages: list[Message] = []
        self.begin(system)

    def begin(self, system: str | None) -> None:
        self.messages = [] if system is None else [Message("system", system)]

    def run(self) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - line editing and history for input()
        while True:
            try:
                line = _read()
            except KeyboardInterrupt:
                typer.echo("\nCtrl-D or /exit leaves", err=True)
                continue
            if line is None or line in ("/exit", "/quit", "/bye"):
                return
            if line.startswith("/"):
                self.command(line)
            elif line:
                self.answer(line)

    def command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name == "/help":
            for command, meaning in _COMMANDS.items():
                typer.echo(f"  {command:<14} {meaning}")
            typer.echo(f"  {_MULTILINE:<14} begins and ends a message of several lines")
        elif name == "/clear":
            self.messages = [one for one in self.messages[:1] if one.role == "system"]
        elif name == "/system":
            self.begin(rest or None)
        elif name == "/history":
            for message in self.messages:
                said = for_stream(message.content, sys.stdout, raw=self.raw)
                sys.stdout.write(f"{message.role}: {said}\n")
        elif name == "/info":
            info = self.model.info
            for line in (str(info.path), info.engine, *info.because):
                typer.echo(one_line(line))
        else:
            typer.echo(f"unknown command {name}; /help lists them", err=True)

    def answer(self, line: str) -> None:
        question = Message("user", line)
        stream = self.model.chat([*self.messages, question], sampling=self.sampling)
        try:
            with stream:
                for token in stream:
                    say(token, quiet=self.quiet, raw=self.raw)
        except KeyboardInterrupt:
            typer.echo("\n[stopped]", err=True)
        except (RequestError, ServerError) as exc:
            # The conversation goes on without this question, with another server if this one has
            # crashed; nothing that was said is lost.
            typer.echo(f"\nerror: {visible(str(exc))}", err=True)
            return
        typer.echo()
        self.messages += [question, Message("assistant", stream.text)]
        if not self.quiet and stream.timings is not None:
            note(timings_line(stream.usage, stream.timings))


def _read() -> str | None:
    """One message; `None` at the end of the input. Three quotes begin and end several lines."""
    prompt = "> " if sys.stdin.isatty() else ""
    try:
        line = input(prompt).strip()
        if not line.startswith(_MULTILINE):
            return line
        lines = [line.removeprefix(_MULTILINE)]
        while not lines[-1].endswith(_MULTILINE):
            lines.append(input("... " if prompt else ""))
    except EOFError:
        return None
    return "\n".join(lines).removesuffix(_MULTILINE).strip()
