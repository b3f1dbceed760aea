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
import traceback
from typing import Any

from .subject import SubjectError, Unavailable

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have this process killed when its parent ends, whatever this process is stuck in."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve requests until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Two files: writing to one that also reads would drop the requests that wait in its buffer.
    requests = channel.makefile("r", encoding="utf-8", newline="\n")
    answers = channel.makefile("w", encoding="utf-8", newline="\n")
    import torch

    torch.set_num_threads(int(sys.argv[2]))
    runners: dict[str, Any] = {}
    while line := requests.readline():
        request = json.loads(line)
        name = request["subject"]
        if name not in runners:
            runners[name] = _load(name)
        runner = runners[name]
        if isinstance(runner, str):
            _send(answers, {"unavailable": runner})
        elif "case" not in request:
            _send(answers, {"ready": runner.device_name})
        else:
            try:
                answer = _answer(runner, request)
            except Exception:  # what the subject raises is in the answer: this is the harness's own
                answer = {"fault": traceback.format_exc()}
            _send(answers, answer)
            if answer.get("fatal"):
                os._exit(3)


def _answer(runner: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Run a request's case."""
    from moeproof.strategies.case import Case

    case = Case.from_json(request["case"])
    if request.get("outputs"):
        outputs = runner.literal_outputs(case)
        return {"fatal": bool(outputs.pop("fatal", False)), "outputs": outputs}
    outcome: dict[str, Any] = runner.run(case, tuple(request["extras"]), refusal=request["refusal"]).to_json()
    return outcome


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
