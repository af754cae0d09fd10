"""The report as Markdown: the table that people put into an issue or a README. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rocllm.bench.labels import label_subjects
from rocllm.bench.overview import cells_of, remarks, summarize_report
from rocllm.bench.report import Report


def to_markdown(report: Report) -> str:
    """One row for each subject, and below it machine, versions and remarks.

    >>> print(to_markdown(report))  # doctest: +SKIP
    | model | 1 slot, tok/s | 4 slots, tok/s | ratio | first token, after 128 tokens | …
    """
    overview = summarize_report(report)
    rows = [(row.label, *cells_of(row)) for row in overview.rows]
    lines = [
        _line((overview.what, *(", ".join(filter(None, each)) for each in overview.headings))),
        _line(("---", *["---:"] * len(overview.headings))),
        *(_line([_escaped(text) for text in row]) for row in rows),
        "",
        *_meaning(report),
        *(f"- {_escaped(text)}" for text in remarks(report)),
    ]
    return "\n".join(lines) + "\n"


def _meaning(report: Report) -> Iterator[str]:
    suite, machine = report.suite, report.machine
    common = (*label_subjects(report.subjects).common, machine.processor)
    yield (
        f"{'; '.join(map(_escaped, common))}; {_escaped(machine.system)}, kernel "
        f"{_escaped(machine.kernel)}; rocllm {report.rocllm}, {report.started[:10]}."
    )
    yield (
        f"Medians of {suite.repetitions} after {suite.warmups} warm-up; ± is the median absolute "
        f"deviation. Callers get answers of {suite.decode_tokens} tokens at once, each in a slot "
        "of its own; the ratio is that of the two rates."
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Text of model files and paths must not become markup."""
    for character in "\\`*<>[]|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
