"""What changed between two runs, beyond noise. Pure.

A metric has changed if its medians differ by more than `NOISE` times the pooled spread and by more
than `LEAST_PERCENT`. With five samples of each and no difference but normal noise of 2 %, that
calls 1.5 % of the metrics changed; with three samples 6 %; a change of 10 % is seen in 98 and 97 %
of the cases (simulated, 200,000 pairs). Fewer than `FEWEST` samples say nothing about the noise.
What differs from run to run and not within one, such as another program, is no noise in this sense.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rocllm.bench.labels import label_subjects
from rocllm.bench.report import Metric, Report, Subject
from rocllm.bench.stats import Summary, pooled
from rocllm.errors import OptionsError

NOISE = 4.0
LEAST_PERCENT = 3.0
FEWEST = 3

Verdict: TypeAlias = Literal["better", "worse", "same", "too few samples", "lost"]

# The metrics that are compared, and whether more of them is better.
_METRICS: dict[Metric, bool] = {
    "load": False,
    "decode": True,
    "ttft": False,
    "prefill": True,
    "aggregate": True,
}


@dataclass(frozen=True, slots=True)
class Change:
    """One metric of one workload, before and after.

    metric: see `Cell`, or `memory` in bytes. old, new: `None`: there is no figure. percent: how
    much more it is; worse_percent: how much worse, negative when it is better. verdict: what to
    think of it; `lost`: it was measured before, and failed now. why: of what was lost.
    """

    subject: str
    workload: str
    metric: str
    old: Summary | None
    new: Summary | None
    percent: float
    worse_percent: float
    verdict: Verdict
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two reports have in common, and what stands between them.

    changes: every metric that both have. differences: what else is not the same, in words.
    """

    changes: tuple[Change, ...]
    differences: tuple[str, ...]

    @property
    def several(self) -> bool:
        """There is more than one subject, so that a workload alone does not say of which."""
        return len({change.subject for change in self.changes}) > 1

    def name(self, change: Change) -> str:
        """What changed, in words."""
        what = f"{change.workload}: {change.metric}"
        return f"{change.subject}, {what}" if self.several else what

    def regressions(self, max_percent: float) -> tuple[Change, ...]:
        """What became worse by more than `max_percent`, beyond noise, and what was lost."""
        return tuple(
            one
            for one in self.changes
            if one.verdict == "lost" or (one.verdict == "worse" and one.worse_percent > max_percent)
        )


def compare_reports(old: Report, new: Report) -> Comparison:
    """Compare every workload that both reports have of the same model, engine and options.

    Where each holds a single subject these are compared, whatever they are.

    Raises `OptionsError` when there is nothing to compare.

    >>> compare_reports(before, after).regressions(5.0)  # doctest: +SKIP
    ()
    """
    pairs = _pairs(old, new)
    labels = label_subjects([after for _, after in pairs]).each
    changes: list[Change] = []
    for label, (before, after) in zip(labels, pairs, strict=True):
        changes += _cells(label, before, after)
        changes += _memory(label, before, after)
    if not changes:
        raise OptionsError(
            "the two reports have nothing to compare",
            why=f"the first has {_contents(old)}; the second has {_contents(new)}",
            remedy="measure the same model with the same engine, options and suite",
        )
    return Comparison(tuple(changes), tuple(_differences(old, new, pairs)))


def _pairs(old: Report, new: Report) -> list[tuple[Subject, Subject]]:
    if len(old.subjects) == len(new.subjects) == 1:
        return [(old.subjects[0], new.subjects[0])]
    before = {_key(subject): subject for subject in old.subjects}
    return [(before[_key(one)], one) for one in new.subjects if _key(one) in before]


def _key(subject: Subject) -> tuple[str | None, ...]:
    return subject.file, subject.engine, subject.flash_attn, subject.cache_type


def _contents(report: Report) -> str:
    return "; ".join(
        f"{one.title} with {one.engine} ({', '.join(str(cell) for cell in one.cells) or 'empty'})"
        for one in report.subjects
    )


def _cells(label: str, before: Subject, after: Subject) -> Iterator[Change]:
    known = {(cell.kind, cell.size, cell.tokens): cell for cell in before.cells}
    for cell in after.cells:
        earlier = known.get((cell.kind, cell.size, cell.tokens))
        if earlier is None:
            continue
        for metric, more_is_better in _METRICS.items():
            old, new = earlier.summary(metric), cell.summary(metric)
            if old and new:
                yield _judge(label, str(cell), metric, old, new, more_is_better=more_is_better)
            elif old and cell.error is not None:
                yield Change(label, str(cell), metric, old, None, 0, 0, "lost", cell.error)


def _judge(
    subject: str, workload: str, metric: str, old: Summary, new: Summary, *, more_is_better: bool
) -> Change:
    percent = (new.median / old.median - 1) * 100 if old.median else 0.0
    worse = -percent if more_is_better else percent
    verdict: Verdict = "same"
    if min(old.n, new.n) < FEWEST:
        verdict = "too few samples"
    elif abs(percent) > LEAST_PERCENT and abs(new.median - old.median) > NOISE * pooled(old, new):
        verdict = "worse" if worse > 0 else "better"
    return Change(subject, workload, metric, old, new, percent, worse, verdict)


def _memory(label: str, before: Subject, after: Subject) -> Iterator[Change]:
    """Memory has no noise: one figure says it all."""
    old, new = (sum(part.size for part in one.memory) for one in (before, after))
    if old and new:
        first, second = (Summary(FEWEST, float(size), 0.0) for size in (old, new))
        yield _judge(label, "load", "memory", first, second, more_is_better=False)


def _differences(old: Report, new: Report, pairs: list[tuple[Subject, Subject]]) -> Iterator[str]:
    a, b = old.machine, new.machine
    rows = [
        ("machine", a.name, b.name),
        ("kernel", a.kernel, b.kernel),
        ("system", a.system, b.system),
        ("rocllm", old.rocllm, new.rocllm),
        ("options", _options(old), _options(new)),
        ("tokens of an answer", str(old.suite.decode_tokens), str(new.suite.decode_tokens)),
    ]
    for before, after in pairs:
        rows += [
            ("model", before.file, after.file),
            (f"size of {after.file}", str(before.file_size), str(after.file_size)),
            ("engine", before.engine_version or "", after.engine_version or ""),
            ("devices", ", ".join(before.devices) or "CPU", ", ".join(after.devices) or "CPU"),
            ("flash attention", before.flash_attn or "auto", after.flash_attn or "auto"),
            ("cache type", before.cache_type or "auto", after.cache_type or "auto"),
        ]
    for what, first, second in dict.fromkeys(rows):
        if first != second and first and second:
            yield f"{what}: {first} → {second}"
    for which, report in (("first", old), ("second", new)):
        if report.interrupted:
            yield f"the {which} run was interrupted"
        yield from (f"the {which} run: {warning}" for warning in report.warnings)


def _options(report: Report) -> str:
    return ", ".join(f"{name}={value}" for name, value in report.options.items()) or "none"
