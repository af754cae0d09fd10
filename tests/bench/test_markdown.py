"""The table that people paste."""

from __future__ import annotations

from tests.bench.made import cell, report, subject

from rocllm.bench import Suite, to_markdown


def rows(text: str) -> list[list[str]]:
    """The cells of the table."""
    return [
        [part.strip() for part in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_table() -> None:
    """Model, one slot, four slots, their ratio, first token and prefill, as the original had it."""
    text = to_markdown(report())
    heading, rule, row = rows(text)
    assert heading == [
        "model",
        "1 slot, tok/s",
        "4 slots, tok/s",
        "ratio",
        "first token, after 128 tokens",
        "prefill tok/s, of 2048 tokens",
    ]
    assert rule == ["---", *["---:"] * 5]
    assert row == [
        "gemma-3-4b-it-Q4_K_M",
        "100.0 ± 1.0",
        "229.7 ± 2.3",
        "2.30",
        "14.2 ± 0.1 ms",
        "9000 ± 90",
    ]
    for fact in ("b11434", "RX 7800 XT (gfx1101)", "32 cores of AMD Ryzen 9 7950X", "kernel 6.8.0"):
        assert fact in text


def test_setups_of_one_model() -> None:
    """Rows that differ in an option are named by it; the model stands below."""
    text = to_markdown(report(subject(flash_attn="on"), subject(90, flash_attn="off")))
    assert [row[0] for row in rows(text)] == [
        "setup",
        "---",
        "flash attention on",
        "flash attention off",
    ]
    assert "gemma-3-4b-it-Q4_K_M; native" in text


def test_what_is_missing() -> None:
    """Without four callers the most stand in; what was not measured is a dash, and is explained."""
    cells = (
        cell("concurrent", 2, aggregate=50.0),
        cell("prompt", 64, error="the server died\nof a signal"),
        cell("prompt", 99, skipped="too long"),
    )
    text = to_markdown(report(subject(cells=cells), interrupted=True, warnings=("it was busy",)))
    assert rows(text)[0][2] == "2 slots, tok/s"
    assert rows(text)[2][1:] == ["–", "50.0 ± 0.5", "–", "–", "–"]
    assert "prompt of 64 tokens: the server died; of a signal" in text
    assert "prompt of 99 tokens: too long" in text
    assert "interrupted" in text
    assert "It was busy." in text


def test_one_sample_has_no_spread() -> None:
    """± stands only where it is known."""
    cells = (cell("concurrent", 1, aggregate=(50.0,)),)
    text = to_markdown(report(subject(cells=cells), suite=Suite(repetitions=1)))
    assert rows(text)[2][1] == "50.0"


def test_names_are_not_markup() -> None:
    """A file's name cannot break the table or smuggle a link in."""
    text = to_markdown(report(subject(name="a|b[x](http://c)<i>")))
    assert "a\\|b\\[x\\](http://c)\\<i\\>" in text
