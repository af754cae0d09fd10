"""Measure models: what `rocllm bench` does, for programs.

>>> from rocllm.bench import QUICK, Engine, Setup, run_suite
>>> report = run_suite([Setup(path, Engine("any"))], QUICK)  # doctest: +SKIP
>>> report.subjects[0].summary("decode", "decode")  # doctest: +SKIP
Summary(n=3, median=121.4, mad=0.8)
"""

from rocllm.bench.charts import need_charts, write_charts
from rocllm.bench.compare import Change, Comparison, compare_reports
from rocllm.bench.engines import find_engines, fitting
from rocllm.bench.history import (
    Entry,
    History,
    is_of,
    keep_report,
    read_history,
    read_report,
    write_whole,
)
from rocllm.bench.labels import label_subjects
from rocllm.bench.machine import MachineInfo, describe_machine
from rocllm.bench.markdown import to_markdown
from rocllm.bench.overview import Overview, cells_of, rate, remarks, seconds, summarize_report
from rocllm.bench.report import Cell, MemoryPart, Report, Subject, decode_report, encode_report
from rocllm.bench.runner import Step, run_suite
from rocllm.bench.stats import Summary
from rocllm.bench.workloads import QUICK, Engine, Setup, Suite, setups

__all__ = [
    "QUICK",
    "Cell",
    "Change",
    "Comparison",
    "Engine",
    "Entry",
    "History",
    "MachineInfo",
    "MemoryPart",
    "Overview",
    "Report",
    "Setup",
    "Step",
    "Subject",
    "Suite",
    "Summary",
    "cells_of",
    "compare_reports",
    "decode_report",
    "describe_machine",
    "encode_report",
    "find_engines",
    "fitting",
    "is_of",
    "keep_report",
    "label_subjects",
    "need_charts",
    "rate",
    "read_history",
    "read_report",
    "remarks",
    "run_suite",
    "seconds",
    "setups",
    "summarize_report",
    "to_markdown",
    "write_charts",
    "write_whole",
]
