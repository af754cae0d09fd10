"""Charts for a report: throughput over callers, first token over prompt length, memory by part.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color), which people with any colour vision
tell apart; each line has a marker of its own, too, for print without colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rocllm.bench.labels import label_subjects
from rocllm.bench.report import HOST, MemoryPart, Metric, Report, Subject
from rocllm.bench.stats import Summary
from rocllm.bench.workloads import Kind
from rocllm.errors import BackendUnavailable
from rocllm.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_KINDS = ("weights", "KV cache", "state", "compute", "staging", "output")
_KIND_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#F0E442", "#CC79A7")
# Light text on dark colours.
_KIND_TEXT = ("white", "#222222", "white", "#222222", "#222222", "#222222")
_GREY = "#555555"
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "axes.labelcolor": "#222222",
    "legend.frameon": False,
    "legend.fontsize": 9,
    # The same report gives the same file.
    "svg.hashsalt": "rocllm",
}
# Inches; the header holds the heading and three lines below it.
_WIDTH, _HEIGHT, _HEADER = 7.6, 4.8, 0.92
# Characters.
_LEGEND_WIDTH = 26
_SUBTITLE_WIDTH = 116
# Shares of the longest bar: a part below is not to be seen, one above has room for its size.
_VISIBLE, _ROOMY = 0.003, 0.11
# Beyond this ratio of the longest to the shortest time a linear axis shows the longest only.
_LINEAR = 15


@dataclass(frozen=True, slots=True)
class _Bar:
    """What a subject has in one place. at: where it is drawn."""

    label: str
    place: str
    at: float
    parts: tuple[MemoryPart, ...]

    def size(self, kind: str) -> int:
        return sum(part.size for part in self.parts if part.kind == kind)

    @property
    def total(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Line:
    """A subject's points. label: what tells it apart. style: its number, for colour and marker."""

    label: str
    style: int
    points: tuple[tuple[int, Summary], ...]


def need_charts() -> None:
    """Raise `BackendUnavailable` if charts cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as exc:
        raise BackendUnavailable(
            "charts cannot be drawn",
            why=f"matplotlib is not there: {exc}",
            remedy="pip install 'rocllm[charts]'",
        ) from exc


def write_charts(report: Report, folder: Path) -> tuple[Path, ...]:
    """Draw what the report has figures for, as PNG and SVG; the files.

    Raises `BackendUnavailable` without matplotlib, `OSError` when a file cannot be written.

    >>> write_charts(report, Path("charts"))[0].name  # doctest: +SKIP
    'throughput.png'
    """
    need_charts()
    import matplotlib as mpl

    drawings: dict[str, Callable[[Report], Figure | None]] = {
        "throughput": _throughput,
        "first_token": _first_token,
        "memory": _memory,
    }
    written: list[Path] = []
    with mpl.rc_context(cast(Any, _STYLE)):
        for name, draw in drawings.items():
            figure = draw(report)
            if figure is None:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
                path = folder / f"{name}.{suffix}"
                figure.savefig(path, dpi=200, metadata=metadata)
                written.append(path)
    return tuple(written)


def _throughput(report: Report) -> Figure | None:
    lines = _lines(report, "concurrent", "aggregate")
    if not lines:
        return None
    figure, axes = _figure(_HEIGHT)
    _draw_lines(axes, lines, lambda value: f"{value:.0f}" if value >= 100 else f"{value:.1f}")
    scale = _scale(axes, lines)
    axes.set_xlabel("callers at once, each in a slot of its own")
    axes.set_ylabel(f"tokens a second, all callers{scale}")
    _heading(figure, report, "Throughput by number of callers", _spread_note(lines))
    return figure


def _first_token(report: Report) -> Figure | None:
    lines = _lines(report, "prompt", "ttft")
    if not lines:
        return None
    figure, axes = _figure(_HEIGHT)
    longest = max(summary.median for line in lines for _, summary in line.points)
    unit, factor = ("ms", 1000) if longest < 1 else ("s", 1)
    _draw_lines(axes, lines, lambda value: f"{value:.3g} {unit}", factor)
    scale = _scale(axes, lines)
    axes.set_xlabel("tokens of the prompt, none of them cached")
    axes.set_ylabel(f"time to the first token in {unit}{scale}")
    title = "Time to the first token by length of the prompt"
    _heading(figure, report, title, _spread_note(lines))
    return figure


def _memory(report: Report) -> Figure | None:
    bars = list(_bars(report))
    if not bars:
        return None
    figure, axes = _figure(_HEADER + 1.0 + 0.36 * (bars[-1].at + 1))
    longest = max(bar.total for bar in bars)
    unit, factor = ("GiB", 2**30) if longest >= 2**30 else ("MiB", 2**20)
    _draw_bars(axes, bars, factor)
    alone = len(report.subjects) == 1
    for bar in bars:
        where = "" if alone or not bar.place else f"{bar.place}: "
        text = f" {where}{format_bytes(bar.total)}"
        axes.text(bar.total / factor, bar.at, text, va="center", color="#222222", fontsize=9)
    axes.set_xlim(0, longest / factor * (1.16 if alone or not bars[0].place else 1.3))
    axes.set_ylim(bars[-1].at + 0.7, -0.7)
    marks: dict[str, list[float]] = {}
    for bar in bars:
        marks.setdefault(bar.place or "host" if alone else bar.label, []).append(bar.at)
    axes.set_yticks([sum(at) / len(at) for at in marks.values()], list(marks))
    axes.tick_params(axis="y", length=0, labelcolor="#222222")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"memory in {unit}")
    figure.legend(loc="outside lower center", ncols=len(_KINDS), handlelength=1.2)
    _heading(figure, report, "Memory by part", _memory_note(report, bars))
    return figure


def _bars(report: Report) -> Iterator[_Bar]:
    """A bar for each place of each subject; those of a subject stand close together."""
    labels = label_subjects(report.subjects).each
    places = {part.place for subject in report.subjects for part in subject.memory} - {HOST}
    at = 0.0
    for label, subject in zip(labels, report.subjects, strict=True):
        own = list(dict.fromkeys(part.place for part in subject.memory))
        for place in own:
            parts = tuple(part for part in subject.memory if part.place == place)
            name = place if place == HOST or len(places) > 1 else "GPU"
            yield _Bar(_wrapped(label), name if places else "", at, parts)
            at += 1
        at += 0.6 if own else 0


def _memory_note(report: Report, bars: Sequence[_Bar]) -> str:
    notes = []
    longest = max(bar.total for bar in bars)
    first = {cells[0] for one in report.subjects if (cells := _with_context(one))}
    if len(first) == 1:
        ((slots, ctx_size),) = first
        notes.append(f"{slots} slot{'s' if slots > 1 else ''} of {ctx_size:,} tokens")
    parts = [part for subject in report.subjects for part in subject.memory]
    if planned := sorted({part.kind for part in parts if part.allocated is None}):
        notes.append(f"sizes as the engine reports them; {', '.join(planned)} on the host: planned")
    if unseen := [kind for kind in _KINDS if 0 < _largest(bars, kind) < _VISIBLE * longest]:
        notes.append(f"too small to be seen: {', '.join(unseen)}")
    return "; ".join(notes)


def _largest(bars: Sequence[_Bar], kind: str) -> int:
    return max(bar.size(kind) for bar in bars)


def _with_context(subject: Subject) -> list[tuple[int, int]]:
    return [(one.slots, one.ctx_size) for one in subject.cells if one.ctx_size is not None]


def _lines(report: Report, kind: Kind, metric: Metric) -> list[_Line]:
    labels = label_subjects(report.subjects).each
    found = []
    for number, (label, subject) in enumerate(zip(labels, report.subjects, strict=True)):
        points = tuple(_points(subject, kind, metric))
        if points:
            found.append(_Line(label, number, points))
    # The legend lists them as they end on the right, from top to bottom.
    return sorted(found, key=lambda line: -line.points[-1][1].median)


def _points(subject: Subject, kind: Kind, metric: Metric) -> Iterator[tuple[int, Summary]]:
    for size in sorted(subject.sizes(kind, metric)):
        summary = subject.summary(kind, metric, size)
        if summary is not None:
            yield size, summary


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    room = (0, 0, 1, 1 - _HEADER / height)
    engine = ConstrainedLayoutEngine(rect=room, w_pad=0.14, h_pad=0.12)
    figure = Figure(figsize=(_WIDTH, height), layout=engine)
    return figure, figure.add_subplot()


def _draw_lines(
    axes: Axes, lines: Sequence[_Line], text: Callable[[float], str], factor: float = 1
) -> None:
    handles = []
    for line in lines:
        sizes = [size for size, _ in line.points]
        values = [summary.median * factor for _, summary in line.points]
        drawn = axes.errorbar(
            sizes,
            values,
            yerr=[summary.mad * factor for _, summary in line.points],
            color=_COLOURS[line.style % len(_COLOURS)],
            marker=_MARKERS[line.style % len(_MARKERS)],
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.7,
            linewidth=2,
            elinewidth=1.2,
            capsize=3,
        )
        handles.append(drawn.lines[0])
        if len(lines) == 1:
            for size, value in zip(sizes, values, strict=True):
                # Lines rise: the upper left of a point is free.
                axes.annotate(
                    text(value), (size, value), (-5, 6), textcoords="offset points", ha="right"
                )
    if len(lines) > 1:
        axes.legend(
            handles,
            [_wrapped(line.label) for line in lines],
            loc="upper left",
            bbox_to_anchor=(1.01, 1.02),
            handlelength=1.8,
            labelspacing=0.9,
        )


def _draw_bars(axes: Axes, bars: Sequence[_Bar], factor: float) -> None:
    longest = max(bar.total for bar in bars)
    done = [0.0] * len(bars)
    for kind, colour, dark in zip(_KINDS, _KIND_COLOURS, _KIND_TEXT, strict=True):
        if not _largest(bars, kind):
            continue
        sizes = [bar.size(kind) / factor for bar in bars]
        axes.barh(
            [bar.at for bar in bars],
            sizes,
            left=done,
            height=0.74,
            color=colour,
            edgecolor="white",
            linewidth=0.6,
            label=kind if _largest(bars, kind) >= _VISIBLE * longest else None,
        )
        for bar, before, size in zip(bars, done, sizes, strict=True):
            if bar.size(kind) >= _ROOMY * longest:
                text = format_bytes(bar.size(kind))
                middle = before + size / 2
                axes.text(middle, bar.at, text, ha="center", va="center", color=dark, fontsize=8)
        done = [before + size for before, size in zip(done, sizes, strict=True)]


def _scale(axes: Axes, lines: Sequence[_Line]) -> str:
    """Both axes: sizes that double across, values up; what to say of the latter."""
    sizes = sorted({size for line in lines for size, _ in line.points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.2)
    axes.grid(visible=False, axis="x")
    values = [summary.median for line in lines for _, summary in line.points]
    if max(values) <= _LINEAR * min(values):
        axes.set_ylim(bottom=0)
        return ""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.minorticks_off()
    return " (logarithmic)"


def _spread_note(lines: Sequence[_Line]) -> str:
    several = any(summary.n > 1 for line in lines for _, summary in line.points)
    return "medians; error bars: median absolute deviation" if several else ""


def _heading(figure: Figure, report: Report, title: str, note: str) -> None:
    labels = label_subjects(report.subjects)
    model = labels.each if len(report.subjects) == 1 else ()
    facts = (*model, *labels.common, report.machine.processor)
    lines = [*_joined(facts, _SUBTITLE_WIDTH)[:2], note]
    height = figure.get_figheight()
    left, top = 0.14 / _WIDTH, 1 - 0.14 / height
    figure.text(left, top, title, fontsize=13, fontweight="bold", va="top", color="#111111")
    below = top - 0.29 / height
    figure.text(left, below, "\n".join(lines), fontsize=8.5, va="top", color=_GREY)


def _wrapped(label: str) -> str:
    """In lines of about the same length, if possible each of them one thing."""
    return "\n".join(
        line
        for part in label.replace(", ", ",\n").split("\n")
        for line in _balanced(part, _LEGEND_WIDTH)
    )


def _balanced(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width)
    while width > 1 and len(textwrap.wrap(text, width - 1)) == len(lines):
        width -= 1
        lines = textwrap.wrap(text, width)
    return lines


def _joined(facts: Sequence[str], width: int) -> list[str]:
    """Lines of whole facts."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + len(fact) + 3 <= width:
            lines[-1] += f" · {fact}"
        else:
            lines.append(fact)
    return lines
