"""Measurements and comparisons as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rocllm.bench import (
    Cell,
    Change,
    Comparison,
    Entry,
    Overview,
    Report,
    Subject,
    cells_of,
    label_subjects,
    rate,
    remarks,
    seconds,
    summarize_report,
)
from rocllm.units import format_bytes

_COLOURS = {"better": "green", "worse": "red", "lost": "red", "too few samples": "yellow"}


def print_report(console: Console, report: Report) -> None:
    """Every figure of a report, the overview last."""
    labels = label_subjects(report.subjects)
    for label, subject in zip(labels.each, report.subjects, strict=True):
        console.print(Text(label, "bold"))
        console.print(_details(subject))
        if subject.memory:
            console.print(Text(f"  memory: {_memory(subject)}"))
        console.print()
    console.print(_overview(summarize_report(report)))
    facts = (*labels.common, report.machine.processor, f"kernel {report.machine.kernel}")
    console.print(Text(f"{'; '.join(facts)}; rocllm {report.rocllm}, {report.started}", "dim"))
    console.print(Text("± is the median absolute deviation", "dim"))
    for remark in remarks(report):
        console.print(Text(remark))


def print_comparison(console: Console, comparison: Comparison) -> None:
    """What changed, and what else is not the same."""
    table = _table("what", "before", "after", "change", "verdict")
    subject = None
    for change in comparison.changes:
        if comparison.several and change.subject != subject:
            subject = change.subject
            table.add_row(Text(subject, "bold"))
        what = f"{change.workload}: {change.metric}"
        table.add_row(
            Text(f"  {what}" if comparison.several else what),
            _figure(change, before=True),
            _figure(change, before=False),
            f"{change.percent:+.1f} %" if change.new else "–",
            Text(change.verdict, _COLOURS.get(change.verdict, "")),
        )
    console.print(table)
    for change in comparison.changes:
        if change.why:
            console.print(Text(f"{comparison.name(change)}: {change.why}"))
    for difference in comparison.differences:
        console.print(Text(difference))


def print_history(console: Console, entries: Sequence[Entry]) -> None:
    """A line for each subject of each kept run, the oldest first."""
    table = _table("model", "engine", "date (UTC)", "1 slot\ntok/s", "slots\ntok/s", "first\ntoken")
    for entry in entries:
        overview = summarize_report(entry.report)
        for subject, row in zip(entry.report.subjects, overview.rows, strict=True):
            many = f"{overview.callers}: {rate(row.several)}" if row.several else "–"
            options = [f"fa {subject.flash_attn}" if subject.flash_attn else ""]
            options += [subject.cache_type or ""]
            table.add_row(
                Text(", ".join(filter(None, (subject.title, *options)))),
                Text(f"{subject.engine} {subject.build}".strip()),
                entry.report.started[:10],
                rate(row.single),
                many,
                seconds(row.ttft),
            )
    engine = table.columns[1]
    engine.justify, engine.no_wrap, engine.overflow = "left", False, "fold"
    console.print(table)


def _overview(overview: Overview) -> Table:
    table = _table(overview.what, *("\n".join(each) for each in overview.headings))
    for row in overview.rows:
        table.add_row(Text(row.label, "bold"), *cells_of(row))
    return table


def _details(subject: Subject) -> Table:
    table = _table("workload", "tok/s", "seconds", "")
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for cell in subject.cells:
        table.add_row(Text(str(cell)), *_figures(cell), Text("; ".join(_said(cell)), "dim"))
    return table


def _figures(cell: Cell) -> tuple[str, str]:
    match cell.kind:
        case "load":
            return "", seconds(cell.summary("load"))
        case "decode":
            return rate(cell.summary("decode")), ""
        case "prompt":
            return rate(cell.summary("prefill")), seconds(cell.summary("ttft"))
        case "concurrent":
            return rate(cell.summary("aggregate")), seconds(cell.summary("ttft"))


def _said(cell: Cell) -> Iterator[str]:
    if first := cell.summary("first_load"):
        yield f"the first time {seconds(first)}"
    if ratio := cell.summary("client_ratio"):
        yield f"{ratio.median:.3f} of the server's rate"
    if (caller := cell.summary("caller")) and cell.size > 1:
        yield f"{caller.median:.1f} tok/s each"
    if cell.skipped is not None:
        yield "skipped, see below"
    if cell.error is not None:
        yield "failed, see below"


def _memory(subject: Subject) -> str:
    places: dict[str, list[str]] = {}
    for part in subject.memory:
        planned = " (planned)" if part.allocated is None else ""
        text = f"{part.kind} {format_bytes(part.size)}{planned}"
        places.setdefault(part.place, []).append(text)
    return "; ".join(f"{place}: {', '.join(parts)}" for place, parts in places.items())


def _figure(change: Change, *, before: bool) -> str:
    summary = change.old if before else change.new
    if summary is not None and change.metric == "memory":
        return format_bytes(round(summary.median))
    return seconds(summary) if change.metric in ("load", "ttft") else rate(summary)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(Text(first), overflow="fold", min_width=20)
    for name in others:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table
