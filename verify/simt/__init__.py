"""The SIMT executor: CUDA kernels run on a CPU from their own sources, every access checked, every schedule chosen."""

from .executor import Executor, Session
from .program import LaunchError, Program
from .report import Fault, SimtError
from .schedule import POLICIES, Schedule, schedules
from .subjects import own, subject

__all__ = [
    "POLICIES",
    "Executor",
    "Fault",
    "LaunchError",
    "Program",
    "Schedule",
    "Session",
    "SimtError",
    "own",
    "schedules",
    "subject",
]
