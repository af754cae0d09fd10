"""What stands between this machine and a model on its GPU: checks, their evidence and remedies."""

from rocllm.doctor._check_engine import in_one_line
from rocllm.doctor.checks import CHECKS, Check, finding, run_checks
from rocllm.doctor.examine import examine
from rocllm.doctor.explain import cheap_findings, explain_failure, launch_warnings, name_cause
from rocllm.doctor.types import Finding, State, User, Verdict, fail, ok, unknown, warn

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "State",
    "User",
    "Verdict",
    "cheap_findings",
    "examine",
    "explain_failure",
    "fail",
    "finding",
    "in_one_line",
    "launch_warnings",
    "name_cause",
    "ok",
    "run_checks",
    "unknown",
    "warn",
]
