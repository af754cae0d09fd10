"""One llama-server child: find it, build its command line, run it, watch it, stop it."""

from rocllm.server._rule import Rule, rule
from rocllm.server._rules import RULES
from rocllm.server.binary import ListedDevice, ServerBinary, find_server, list_devices
from rocllm.server.command import LaunchCommand, LaunchOptions, build_command
from rocllm.server.diagnose import Names, diagnose, name_unseen_gpu
from rocllm.server.evidence import look_after, look_before
from rocllm.server.health import check_health
from rocllm.server.process import ServerProcess
from rocllm.server.report import Buffer, LoadReport, UsedDevice
from rocllm.server.run_dir import RunDir
from rocllm.server.start import LoadProgress, start_server
from rocllm.server.supervisor import State, Supervisor, Transition

__all__ = [
    "RULES",
    "Buffer",
    "LaunchCommand",
    "LaunchOptions",
    "ListedDevice",
    "LoadProgress",
    "LoadReport",
    "Names",
    "Rule",
    "RunDir",
    "ServerBinary",
    "ServerProcess",
    "State",
    "Supervisor",
    "Transition",
    "UsedDevice",
    "build_command",
    "check_health",
    "diagnose",
    "find_server",
    "list_devices",
    "look_after",
    "look_before",
    "name_unseen_gpu",
    "rule",
    "start_server",
]
