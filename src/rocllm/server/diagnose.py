"""From how a child ended to a typed error: one table, in `_rules`. Pure.

The rules are tried in order on the last lines of output, newest first; the first that matches wins.
"""

from __future__ import annotations

import itertools
import os
import shlex
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from rocllm.errors import OutOfMemory, RocllmError, ServerCrashed, ServerError, StartFailed
from rocllm.server._rules import FROM_OUTSIDE, KILLED_BY_OOM, RULES, SIGNALS, Rule

_TAIL = 5
# Characters of a line; vLLM may list all the architectures that it knows.
_MOST_QUOTED = 500
_BY_HAND = "run the same by hand to see more; the command line is in `argv`"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a child's end beside its status and its output.

    killed_by_oom: how the kernel told that it killed for want of memory; `None`: it did not.
    kernel_log: what the kernel logged about the child and about AMD GPUs while the child ran, as
    far as it may be read.
    """

    killed_by_oom: str | None = None
    kernel_log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Names:
    """What a person would call things.

    gpus: the label of the GPU of each KFD node. planned: the memory that the child was to take.
    engine: the program. rules: the causes to try, in this order.
    """

    gpus: Mapping[int, str] = field(default_factory=dict)
    planned: str | None = None
    engine: str = "llama-server"
    rules: tuple[Rule, ...] = RULES


NO_EVIDENCE = Evidence()
NO_NAMES = Names()


def diagnose(
    argv: tuple[str, ...],
    exit_status: int,
    output: tuple[str, ...],
    *,
    ready: bool,
    model: str | None = None,
    names: Names = NO_NAMES,
    evidence: Evidence = NO_EVIDENCE,
) -> RocllmError:
    """The error that tells why the child ended, with `cause` and `retryable`.

    exit_status: negative for a signal. output: its last lines. ready: it had served before.
    model: the model file, for the message. names: what a person would call things. evidence: what
    else is known.
    """
    found = _cause(argv, exit_status, output, ready, evidence, names.rules)
    error = _error_type(found.rule if found else None, ready)
    subject = f"{names.engine} could not load {model!r}" if model and not ready else names.engine
    what = f"{subject}: it ended {'while serving ' if ready else ''}with {status(exit_status)}"
    why = [found.why(names), found.said] if found else [_tail(output)]
    if names.planned is not None and issubclass(error, OutOfMemory):
        why.append(f"planned: {names.planned}")
    told = "\n".join(part for part in why if part) or None
    remedy = found.rule.remedy if found else _BY_HAND
    diagnosis = (
        error(what, why=told, remedy=remedy, argv=argv, exit_status=exit_status, output=output)
        if issubclass(error, ServerError)
        else error(what, why=told, remedy=remedy)
    )
    diagnosis.cause = found.rule.id if found else None
    diagnosis.retryable = _worth_retrying(found.rule if found else None, exit_status, ready)
    return diagnosis


@dataclass(frozen=True, slots=True)
class _Found:
    """A rule that applies, and what tells that it does."""

    rule: Rule
    groups: Mapping[str, str]
    said: str

    def why(self, names: Names = NO_NAMES) -> str:
        groups = dict(self.groups)
        if "node" in groups:
            node = int(groups["node"])
            known = names.gpus.get(node)
            groups["gpu"] = f"the GPU of KFD node {node}" if known is None else f"GPU {known}"
        return self.rule.why.format_map(groups)


def _cause(
    argv: tuple[str, ...],
    exit_status: int,
    output: tuple[str, ...],
    ready: bool,
    evidence: Evidence,
    rules: tuple[Rule, ...],
) -> _Found | None:
    number = -exit_status
    if number == signal.SIGKILL and evidence.killed_by_oom is not None:
        return _Found(KILLED_BY_OOM, {}, evidence.killed_by_oom)
    hints = not ready and number <= 0 and _wants_gpu(argv)
    found = None if number in FROM_OUTSIDE else _match(output, hints, rules)
    if found is None or found.rule.error is ServerCrashed:
        # A GPU that was reset is an error of some operation to those that use it.
        found = _match(evidence.kernel_log, hints=False) or found
    if found is None and number in SIGNALS:
        logged = [f"the kernel logged: {line}" for line in evidence.kernel_log[-1:]]
        found = _Found(SIGNALS[number], {}, "\n".join((*logged, _tail(output))).strip())
    return found


def _error_type(rule: Rule | None, ready: bool) -> type[RocllmError]:
    if ready:
        out_of_memory = rule is not None and issubclass(rule.error, OutOfMemory)
        return OutOfMemory if out_of_memory else ServerCrashed
    return StartFailed if rule is None or rule.error is ServerCrashed else rule.error


def _worth_retrying(rule: Rule | None, exit_status: int, ready: bool) -> bool:
    # What crashes by itself while it loads will do so again.
    outside = -exit_status in FROM_OUTSIDE or (rule is not None and rule.outside)
    by_itself = (rule is None or rule.error is ServerCrashed) and not outside
    return (rule is None or rule.retryable) and (ready or not by_itself)


def _wants_gpu(argv: tuple[str, ...]) -> bool:
    """`False` if the command says `--device none`."""
    return ("--device", "none") not in itertools.pairwise(argv)


def explain_exit(argv: tuple[str, ...], exit_status: int, output: tuple[str, ...]) -> RocllmError:
    """The same for a binary that was only asked a question."""
    error = diagnose(argv, exit_status, output, ready=False)
    error.what = f"`{shlex.join(argv)}` ended with {status(exit_status)}"
    return error


def name_unseen_gpu(error: RocllmError, said: tuple[str, ...]) -> None:
    """Put into `error`, that a program sees no GPU, what it said about that, if it is known.

    A build whose GPU part cannot be loaded says so, and goes on without it.
    """
    found = _match(said, hints=True)
    if found is not None:
        error.why = f"{found.why()}\n{found.said}"
        error.remedy = found.rule.remedy
        error.cause = found.rule.id


def cannot_run(argv: tuple[str, ...], error: Exception) -> ServerError:
    """The error for a program that the system did not even start."""
    number = error.errno if isinstance(error, OSError) else None
    told = str(error) or type(error).__name__
    said = told if number is None else os.strerror(number)
    failed: ServerError = StartFailed(f"cannot run {argv[0]!r}: {said}", remedy=_BY_HAND, argv=argv)
    found = _match((f"failed to execute {argv[0]}: {said}",), hints=False)
    if found is not None:
        rule = found.rule
        error_type = OutOfMemory if rule.error is OutOfMemory else StartFailed
        failed = error_type(failed.what, why=found.why(), remedy=rule.remedy, argv=argv)
        failed.cause = rule.id
    return failed


def status(exit_status: int) -> str:
    """An exit status in words: `exit status 1`, `signal SIGKILL`."""
    if exit_status >= 0:
        return f"exit status {exit_status}"
    try:
        return f"signal {signal.Signals(-exit_status).name}"
    except ValueError:
        return f"signal {-exit_status}"


def _match(lines: tuple[str, ...], hints: bool, rules: tuple[Rule, ...] = RULES) -> _Found | None:
    for rule in rules:
        if rule.pattern is None or (rule.hint and not hints):
            continue
        for index in range(len(lines) - 1, -1, -1):
            match = rule.pattern.search(lines[index])
            if match is not None:
                groups = {name: text for name, text in match.groupdict().items() if text}
                return _Found(rule, groups, _quote(lines[index : index + 2]))
    return None


def _quote(lines: tuple[str, ...]) -> str:
    """A line, and the one after it that continues it: `  current device: 1, in function ...`."""
    line = lines[0].strip()
    said = f"it said: {line[:_MOST_QUOTED]}{'…' if len(line) > _MOST_QUOTED else ''}"
    return f"{said}\n  {lines[1].strip()}" if lines[1:] and lines[1][:1] == " " else said


def _tail(output: tuple[str, ...]) -> str:
    lines = [line for line in output if line.strip()][-_TAIL:]
    return "last output:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
