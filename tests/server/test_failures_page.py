"""docs/failures.md has every cause. Run as a program, this file writes its tables."""

from __future__ import annotations

import re
from pathlib import Path

from rocllm.server._rules import GROUPS, KILLED_BY_OOM, RULES, SIGNALS, Rule

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "failures.md"
BEGIN, END = "<!-- causes: begin -->\n", "<!-- causes: end -->\n"
HEAD = "| cause | what is said | why | what to do | tried again |\n|---|---|---|---|---|\n"


def tables() -> str:
    """The causes that are found in what a server says, a table a group."""
    parts = []
    for title, rules in GROUPS.items():
        rows = "".join(f"| {' | '.join(map(cell, columns(rule)))} |\n" for rule in rules)
        parts.append(f"### {title}\n{HEAD}{rows}")
    return "\n".join(parts)


def columns(rule: Rule) -> tuple[str, ...]:
    """A row; names in the explanation are those of the example."""
    said = "<br>".join(f"`{line.strip()}`" for line in rule.example.splitlines())
    found = rule.pattern.search(rule.example.splitlines()[-1]) if rule.pattern else None
    groups = {name: text for name, text in (found.groupdict() if found else {}).items() if text}
    why = rule.why.format_map({"gpu": "the GPU", **groups})
    return f"`{rule.id}`", said, why, rule.remedy, "yes" if rule.retryable else "no"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def written() -> str:
    """The tables on the page."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def test_the_page_is_up_to_date() -> None:
    """Every rule is on it, as it is."""
    assert written() == tables(), "run: python tests/server/test_failures_page.py"


def test_every_rule_is_in_a_group() -> None:
    """No cause is forgotten, and none is told twice."""
    grouped = [rule.id for rules in GROUPS.values() for rule in rules]
    assert sorted(grouped) == sorted(rule.id for rule in (*RULES, *SIGNALS.values(), KILLED_BY_OOM))


def test_every_cause_is_on_the_page() -> None:
    """Those too that rocllm itself finds."""
    page = PAGE.read_text()
    for path in (ROOT / "src").rglob("*.py"):
        for cause in re.findall(r'^ +(?:\w+\.)?cause = "(\w+)"$', path.read_text(), re.MULTILINE):
            assert f"| `{cause}` |" in page, f"{cause}, in {path}"


if __name__ == "__main__":
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + begin + tables() + END + rest.partition(END)[2])
