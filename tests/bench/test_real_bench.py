"""`rocllm bench` on the real server and the demo model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from rocllm.bench import decode_report
from rocllm.bench.report import HOST


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, on one thread and with one sample of each."""
    quick = ("--quick", "--threads", "1", "--repetitions", "1", "--warmups", "0")
    return subprocess.run(
        [sys.executable, "-m", "rocllm", "bench", *quick, *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_quick_run(demo_model: Path, tmp_path: Path) -> None:
    """Every figure is there and plausible, nothing came from the cache, and the run is kept."""
    target = tmp_path / "report.json"
    done = bench("demo", "--json", str(target), "--charts", str(tmp_path / "charts"))
    assert done.returncode == 0, done.stderr
    report = decode_report(target.read_text(), "it")
    (subject,) = report.subjects
    assert [(cell.error, cell.skipped, cell.notes) for cell in subject.cells] == [
        (None, None, ())
    ] * 6
    # Both clocks tell of the same tokens: ours can add, and has nothing to take away.
    ratio = subject.summary("decode", "client_ratio")
    assert ratio is not None
    assert 0.5 < ratio.median < 1.05
    for cell in subject.cells:
        if cell.kind == "prompt":
            (ttft,), (prefill,) = cell.samples["ttft"], cell.samples["prefill"]
            assert ttft >= cell.size / prefill * 0.99
    parts = {part.kind: part for part in subject.memory}
    assert set(parts) == {"weights", "KV cache", "compute", "output"}
    assert parts["KV cache"].allocated == parts["KV cache"].planned
    assert parts["weights"].allocated is None
    assert {part.place for part in subject.memory} == {HOST}
    assert (tmp_path / "charts" / "memory.svg").exists()
    (kept,) = Path(os.environ["XDG_STATE_HOME"], "rocllm", "bench").iterdir()
    assert json.loads(kept.read_text()) == json.loads(target.read_text())


def test_flash_attention_on_and_off(demo_model: Path) -> None:
    """Both are measured, and Markdown has a row for each."""
    only = ("--only", "decode", "--flash-attn", "on,off")
    done = bench(str(demo_model), *only, "--markdown", "-")
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:4]] == [
        "flash attention on",
        "flash attention off",
    ]
