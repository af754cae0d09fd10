"""The few figures that stand for a model: the table of the report. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rocllm.bench.labels import label_subjects
from rocllm.bench.report import Report, Subject
from rocllm.bench.stats import Summary
from rocllm.units import format_seconds

# As many as the program had that rocllm continues.
_SLOTS = 4
_LONGEST_REMARK = 240


@dataclass(frozen=True, slots=True)
class Row:
    """A subject in one line; `None`: not measured.

    single: tokens a second of one caller; several: of all callers together. ratio: of the two.
    ttft: seconds. prefill: tokens a second.
    """

    label: str
    single: Summary | None
    several: Summary | None
    ttft: Summary | None
    prefill: Summary | None

    @property
    def ratio(self) -> float | None:
        """What the slots bring."""
        if self.single is None or self.several is None or not self.single.median:
            return None
        return self.several.median / self.single.median


@dataclass(frozen=True, slots=True)
class Overview:
    """A row for each subject, and what its columns mean.

    what: the rows are: models, or setups of one. callers: at once, for `several`. first_length,
    prefill_length: tokens of the prompts for `ttft` and `prefill`: the shortest and the longest
    that were measured.
    """

    what: str
    rows: tuple[Row, ...]
    callers: int | None
    first_length: int | None
    prefill_length: int | None

    @property
    def headings(self) -> tuple[tuple[str, str], ...]:
        """Of the columns without the first: what, and in which unit."""
        return (
            ("1 slot", "tok/s"),
            (f"{self.callers or 'several'} slots", "tok/s"),
            ("ratio", ""),
            ("first token", f"after {self.first_length} tokens" if self.first_length else ""),
            ("prefill tok/s", f"of {self.prefill_length} tokens" if self.prefill_length else ""),
        )


def summarize_report(report: Report) -> Overview:
    """The figures of a report in one row for each subject.

    >>> summarize_report(report).rows[0].ratio  # doctest: +SKIP
    2.3
    """
    subjects = report.subjects
    many = {n for one in subjects for n in one.sizes("concurrent", "aggregate") if n > 1}
    callers = _SLOTS if _SLOTS in many else max(many, default=None)
    lengths = [n for one in subjects for n in one.sizes("prompt", "ttft")]
    first, longest = min(lengths, default=None), max(lengths, default=None)
    labels = label_subjects(subjects)
    return Overview(
        "setup" if len({one.file for one in subjects}) < len(subjects) else "model",
        tuple(
            Row(
                label,
                _single(one),
                one.summary("concurrent", "aggregate", callers),
                one.summary("prompt", "ttft", first),
                one.summary("prompt", "prefill", longest),
            )
            for label, one in zip(labels.each, subjects, strict=True)
        ),
        callers,
        first,
        longest,
    )


def cells_of(row: Row) -> tuple[str, ...]:
    """The row as text, without its label."""
    ratio = row.ratio
    return (
        rate(row.single),
        rate(row.several),
        f"{ratio:.2f}" if ratio is not None else "–",
        seconds(row.ttft),
        rate(row.prefill),
    )


def rate(summary: Summary | None) -> str:
    """Tokens a second with their spread: `118.2 ± 0.8`."""
    if summary is None:
        return "–"
    digits = 0 if summary.median >= 1000 else 1
    return f"{summary.median:.{digits}f}{_spread(summary, f'{summary.mad:.{digits}f}')}"


def seconds(summary: Summary | None) -> str:
    """A duration with its spread: `14.2 ms ± 0.3 ms`."""
    if summary is None:
        return "–"
    if 0 < summary.median < 0.1:
        spread = _spread(summary, f"{summary.mad * 1000:.1f}")
        return f"{summary.median * 1000:.1f}{spread} ms"
    if summary.median < 1:
        return f"{summary.median * 1000:.0f}{_spread(summary, f'{summary.mad * 1000:.0f}')} ms"
    if summary.median < 100:
        return f"{summary.median:.2f}{_spread(summary, f'{summary.mad:.2f}')} s"
    return format_seconds(summary.median)


def remarks(report: Report) -> Iterator[str]:
    """What one should know beside the figures, a sentence each."""
    if report.interrupted:
        yield "The run was interrupted; what is there was measured before."
    for warning in report.warnings:
        yield f"{warning[:1].upper()}{warning[1:]}."
    labels = label_subjects(report.subjects).each
    for label, subject in zip(labels, report.subjects, strict=True):
        said: dict[str, list[str]] = {}
        for cell in subject.cells:
            name = str(cell)
            for text in filter(None, (cell.skipped, cell.error, *cell.notes)):
                said.setdefault(_shortened(text), []).append(name)
        for text in (*subject.remarks, *(f"{', '.join(them)}: {it}" for it, them in said.items())):
            yield f"{label}: {text}"


def _single(subject: Subject) -> Summary | None:
    """One caller, measured as several are: with the wait for the first token."""
    return subject.summary("concurrent", "aggregate", 1) or subject.summary("decode", "decode")


def _shortened(text: str) -> str:
    """What failed and why, in one line; the JSON has the rest, such as a server's last output."""
    line = " ".join("; ".join(text.splitlines()[:2]).split())
    return line if len(line) <= _LONGEST_REMARK else f"{line[: _LONGEST_REMARK - 1]}…"


def _spread(summary: Summary, text: str) -> str:
    return f" ± {text}" if summary.n > 1 else ""
