"""The child process that runs suspects: reads requests from a socket, answers with outcomes.

Started as ``python -m moeproof.verify.worker FD``. One JSON object a line each way; a request names its subject, which
is loaded when first named. The process ends after a sticky CUDA error, so that nothing runs in a lost context, and
when its parent ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from typing import Any

from .subject import SubjectError, Unavailable


PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve requests until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # A child that hangs in a kernel launch would outlive a killed parent.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = socket.socket(fileno=int(sys.argv[1])).makefile("rw", encoding="utf-8", newline="\n")
    import torch

    from moeproof.strategies.case import Case

    torch.set_num_threads(int(sys.argv[2]))
    runners: dict[str, Any] = {}
    while line := channel.readline():
        request = json.loads(line)
        name = request["subject"]
        if name not in runners:
            runners[name] = _load(name)
        runner = runners[name]
        if isinstance(runner, str):
            _send(channel, {"unavailable": runner})
        elif "case" not in request:
            _send(channel, {"ready": runner.device_name})
        elif request.get("outputs"):
            outputs = runner.literal_outputs(Case.from_json(request["case"]))
            fatal = bool(outputs.pop("fatal", False))
            _send(channel, {"outputs": outputs, "fatal": fatal})
            if fatal:
                os._exit(3)
        else:
            case = Case.from_json(request["case"])
            outcome = runner.run(case, tuple(request["extras"]), refusal=request["refusal"])
            _send(channel, outcome.to_json())
            if outcome.fatal:
                os._exit(3)


def _load(name: str) -> Any:
    """Return a runner of the subject, or the reason why there is none."""
    import torch

    from .execute import Runner, pick_device
    from .subject import find

    try:
        (subject,) = find([name])
        device = pick_device(subject)
        if device.type == "cuda" and not torch.cuda.is_available():
            return "needs a CUDA device, and torch sees none"
        return Runner(subject, device)
    except (Unavailable, SubjectError) as error:
        return str(error)
    except Exception as error:  # a library may fail to load in any way
        return f"can't be loaded: {type(error).__name__}: {error}"


def _send(channel: Any, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
