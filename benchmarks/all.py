"""Run the benchmarks, and print what is wanted of rocllm next to what was found.

    python benchmarks/all.py [NAME ...]        # what `make bench` does

All of them but `planner` (`make bench-planner`), one after another, or those that are named, such
as `decode`. At the end stands the table of docs/performance.md. The exit code is 1 when a benchmark
failed, or when a figure is not as wanted; on a busy machine that says little.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import VARIABLE, conditions, table, told
from rocllm.bench import describe_machine

_NOT_RUN = ("all", "figures", "planner")
# Seconds for one; each takes up to four minutes on two cores.
_DEADLINE = 3600.0


def main() -> None:
    """Run what was asked for, and print the table."""
    here = Path(__file__).parent
    names = sorted(path.stem for path in here.glob("*.py") if path.stem not in _NOT_RUN)
    wanted = sys.argv[1:] or names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are: {', '.join(names)}")
    machine, date = describe_machine(os.environ), time.strftime("%Y-%m-%d", time.gmtime())
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "figures")
        path.touch()
        for name in wanted:
            print(f"\n== {name}", flush=True)
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, str(here / f"{name}.py")],
                env={**os.environ, VARIABLE: str(path)},
                timeout=_DEADLINE,
                check=False,
            )
            print(f"({time.monotonic() - started:.0f} s)")
            if done.returncode:
                failed.append(name)
        figures = told(path)
    print(f"\n{conditions(machine, date)}\n\n{table(figures)}\n")
    for warning in machine.warnings:
        print(f"warning: {warning}")
    missed = [one.what for one in figures if one.missed]
    if failed:
        print(f"failed: {', '.join(failed)}")
    if missed:
        print(f"missed: {', '.join(missed)}")
    if failed or missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
