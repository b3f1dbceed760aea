"""The child process that runs suspects: reads requests from a socket, answers with outcomes.

Started as ``python -m moeproof.verify.worker FD THREADS``. The process ends after a sticky CUDA error, so that nothing
runs in a lost context, and when its parent ends.
"""

from __future__ import annotations

import ctypes
import json
import signal
import socket
import sys
from typing import Any

from .building import tell_with
from .serving import serve
from .subject import Unavailable

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
    import torch

    torch.set_num_threads(int(sys.argv[2]))
    tell_with(lambda said: channel.sendall(json.dumps(said).encode() + b"\n"))
    serve(channel, _load, _answer)


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
    """Return a runner of the subject."""
    import torch

    from .execute import Runner, pick_device
    from .subject import find

    (subject,) = find([name])
    device = pick_device(subject)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Unavailable("needs a CUDA device, and torch sees none")
    return Runner(subject, device)


if __name__ == "__main__":
    main()
