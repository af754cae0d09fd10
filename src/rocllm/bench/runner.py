"""Measure: load models, ask them, and keep what came, whatever happens meanwhile."""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rocllm import __version__
from rocllm.bench.ask import concurrent, decode, first_token
from rocllm.bench.machine import describe_machine
from rocllm.bench.record import Record, Tally
from rocllm.bench.report import Cell, Metric, Report
from rocllm.bench.workloads import (
    Session,
    Setup,
    Suite,
    Workload,
    context_for,
    sessions,
    text_prompt,
    token_prompt,
    vocabulary_text,
)
from rocllm.catalog import read_info
from rocllm.errors import OptionsError, RocllmError, RocllmWarning
from rocllm.options import LoadOptions
from rocllm.text import TextModel, load_model


@dataclass(frozen=True, slots=True)
class Step:
    """What is being done: for whoever shows progress.

    setup: number of the setup, counted from 0, of `setups`. repetition: counted from 0, warm-ups
    included, of `repetitions`. cell: the finished cell; `None`: it goes on.
    """

    setup: int
    setups: int
    workload: Workload
    repetition: int
    repetitions: int
    cell: Cell | None = None


def run_suite(
    setups: Sequence[Setup],
    suite: Suite,
    options: LoadOptions | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] = "/",
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Measure every setup with every workload of the suite, one after the other.

    options: what all setups are loaded with. environ, root: as in `load_model`. on_step: is told
    before every measurement and after every cell.

    What fails is kept as the error of its cell, and the rest goes on; Ctrl-C ends the run and keeps
    what there is (`Report.interrupted`). Raises `InvalidGGUF` and the like for a model that
    cannot be read, before anything is measured.

    >>> run_suite([Setup(path, Engine("any"))], QUICK).subjects[0].title  # doctest: +SKIP
    'SmolLM2-135M-Instruct.Q4_1'
    """
    environment = dict(os.environ if environ is None else environ)
    base = LoadOptions() if options is None else options
    context = _Context(suite, base, environment, Path(root), on_step or _ignore, len(setups))
    machine = describe_machine(environment, context.root)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    records = [Record(number, setup, read_info(setup.model)) for number, setup in enumerate(setups)]
    interrupted = False
    try:
        for record in records:
            _measure(record, context)
    except KeyboardInterrupt:
        interrupted = True
    return Report(
        started=started,
        rocllm=__version__,
        machine=machine,
        suite=suite,
        options=_as_text(base),
        subjects=tuple(record.subject() for record in records),
        interrupted=interrupted,
        warnings=machine.warnings,
    )


def _ignore(_step: Step) -> None:
    """Nobody wants to know."""


def _as_text(options: LoadOptions) -> dict[str, str]:
    """The options that differ from the defaults."""
    default = LoadOptions()
    values = ((name, getattr(options, name)) for name in LoadOptions.__dataclass_fields__)
    return {name: str(value) for name, value in values if value != getattr(default, name)}


@dataclass(slots=True)
class _Context:
    """What is the same for a whole run."""

    suite: Suite
    base: LoadOptions
    environ: Mapping[str, str]
    root: Path
    on_step: Callable[[Step], None]
    setups: int
    # Every prompt of a run has a number of its own, so that none is in a cache.
    numbers: Iterator[int] = field(default_factory=itertools.count)


def _measure(record: Record, context: _Context) -> None:
    for session in sessions(context.suite):
        running = _Running(record, context, session)
        try:
            for workload in session.workloads:
                running.measure(workload)
        finally:
            running.close()


class _Running:
    """A session: one load of the model, and another one after a failure."""

    def __init__(self, record: Record, context: _Context, session: Session) -> None:
        self._record = record
        self._context = context
        self._session = session
        self._model: TextModel | None = None
        self._pool: list[int] = []
        # Why there is no point in trying anything else on so many slots.
        self._hopeless: str | None = record.setup.engine.problem
        longest = record.model.context_length or None
        self._ctx_size = context_for(session, longest)

    def close(self) -> None:
        """Unload the model."""
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def measure(self, workload: Workload) -> None:
        """Fill one cell."""
        tally = Tally(workload, self._session.slots)
        self._record.tallies.append(tally)
        try:
            self._fill(tally)
        except (RocllmError, OSError, RuntimeError) as exc:
            # The last two: no thread or no file is left, for so many callers.
            tally.error = str(exc) or type(exc).__name__
            # Whatever state the server is in: the next cell begins with a new one.
            self.close()
        except KeyboardInterrupt:
            tally.note("interrupted")
            raise
        self._tell(tally, 0, tally.cell())

    def _fill(self, tally: Tally) -> None:
        workload = tally.workload
        tally.skipped = self._hopeless
        if self._hopeless is not None:
            return
        if workload.kind != "load" and self._model is None:
            self._load()
        if self._model is not None:
            tally.ctx_size = self._model.info.ctx_size
            tally.skipped = _too_long(workload, tally.ctx_size)
        if tally.skipped is None:
            self._repeat(tally)
        if self._model is not None:
            tally.ctx_size = self._model.info.ctx_size

    def _repeat(self, tally: Tally) -> None:
        suite = self._context.suite
        begun = time.monotonic()
        for repetition in range(suite.warmups + suite.repetitions):
            self._tell(tally, repetition)
            sample = self._sample(tally)
            if repetition < suite.warmups:
                if tally.workload.kind == "load" and repetition == 0:
                    tally.add({"first_load": sample["load"]})
                continue
            tally.add(sample)
            done = repetition + 1 - suite.warmups
            if done < suite.repetitions and time.monotonic() - begun > suite.cell_seconds:
                tally.note(f"{done} of {suite.repetitions} repetitions: its time was over")
                return

    def _tell(self, tally: Tally, repetition: int, cell: Cell | None = None) -> None:
        suite, context = self._context.suite, self._context
        context.on_step(
            Step(
                self._record.number,
                context.setups,
                tally.workload,
                repetition,
                suite.warmups + suite.repetitions,
                cell,
            )
        )

    def _sample(self, tally: Tally) -> dict[Metric, float]:
        workload = tally.workload
        if workload.kind == "load":
            self.close()
            return {"load": self._load()}
        model = self._model
        assert model is not None
        number = self._context.numbers
        if workload.kind == "prompt":
            prompt = token_prompt(self._tokens(model), workload.size, next(number))
            return first_token(model, prompt, tally)
        prompts = [text_prompt(next(number)) for _ in range(workload.size)]
        if workload.kind == "decode":
            return decode(model, prompts[0], tally)
        return concurrent(model, prompts, tally)

    def _load(self) -> float:
        """Load the model; the seconds that it took."""
        setup, context = self._record.setup, self._context
        try:
            options = setup.options(
                context.base, slots=self._session.slots, ctx_size=self._ctx_size
            )
            started = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RocllmWarning)  # kept as remarks
                self._model = load_model(
                    setup.model,
                    backend=setup.engine.backend,
                    options=options,
                    environ=context.environ,
                    root=context.root,
                )
            seconds = time.perf_counter() - started
        except OptionsError as exc:
            self._hopeless = str(exc)
            raise
        except RocllmError as exc:
            self._hopeless = f"the model could not be loaded: {exc}"
            raise
        self._record.saw(self._model.info, options)
        return seconds

    def _tokens(self, model: TextModel) -> list[int]:
        if not self._pool:
            self._pool = model.tokenize(vocabulary_text())
        return self._pool


def _too_long(workload: Workload, ctx_size: int) -> str | None:
    needed = workload.needed_context
    if needed <= ctx_size:
        return None
    return f"it needs {needed} tokens of context, and a slot has {ctx_size}"
