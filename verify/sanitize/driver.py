"""The process that runs under compute-sanitizer: makes each case's buffers at exact size, runs it, waits, says so.

Started as ``python -m moeproof.verify.sanitize.driver SOCKET``, the path of a Unix socket: whatever the tool does with
the file descriptors of what it starts, a path stays good.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any

import torch

from moeproof.strategies.case import Case
from moeproof.verify.contract import arguments, output_specs
from moeproof.verify.execute import describe_error, is_cuda_failure, name_device, pick_device
from moeproof.verify.serving import serve
from moeproof.verify.subject import Call, Subject, Unavailable, find

ALONE_SECONDS = 60.0
"""How long this process may take to end after its parent has hung up, whatever it is stuck in."""


class Sanitized:
    """One subject in this process.

    Parameters
    ----------
    subject : Subject
        The implementation, which is loaded here.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.device = pick_device(subject)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise Unavailable("needs a CUDA device, and torch sees none")
        self.call: Call = subject.load()

    @property
    def device_name(self) -> str:
        """Where cases run, in words."""
        return name_device(self.device)

    @torch.inference_mode()
    def run(self, case: Case) -> dict[str, Any]:
        """Run a case once; nothing is judged.

        Returns
        -------
        dict
            ``raised``: what the subject raised, or an empty string. ``fatal``: the process is of no more use.
            ``buffers``: names of inputs and outputs by the address of their allocation.
        """
        buffers: dict[str, str] = {}
        try:
            self._run(case, buffers)
        except Exception as error:  # whatever a subject raises is a result
            fatal = is_cuda_failure(error, self.device)
            return {"raised": describe_error(error), "fatal": fatal, "buffers": buffers}
        return {"raised": "", "fatal": False, "buffers": buffers}

    def _run(self, case: Case, buffers: dict[str, str]) -> None:
        # Made on the host and copied: no kernel runs here but the subject's. No guard: an allocation ends where its
        # tensor does, so that the tool sees one byte too much.
        views, storages = case.build("cpu", guard=0)
        tensors = {}
        for name, view in views.items():
            storage = storages[name].to(self.device)
            buffers[hex(storage.data_ptr())] = name
            tensors[name] = storage.as_strided(view.shape, view.stride(), view.storage_offset())
        outputs = {}
        for name, (shape, dtype) in output_specs(case, self.subject).items():
            # Not filled: reading an output is reading what nothing has written.
            outputs[name] = torch.empty(shape, dtype=dtype, device=self.device)
            buffers[hex(outputs[name].data_ptr())] = name
        self.call(arguments(case, tensors), outputs)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Serve requests until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(sys.argv[1])
    threading.Thread(target=_end_alone, args=(channel,), daemon=True).start()
    torch.set_num_threads(1)
    serve(channel, _load, lambda subject, request: subject.run(Case.from_json(request["case"])))


def _load(name: str) -> Sanitized:
    """Return a subject that is ready to run."""
    (subject,) = find([name])
    return Sanitized(subject)


def _end_alone(channel: socket.socket) -> None:
    """End this process some time after the parent has hung up, unless it ends by itself."""
    watch = select.poll()
    watch.register(channel, select.POLLRDHUP)
    watch.poll()
    time.sleep(ALONE_SECONDS)
    os._exit(4)


if __name__ == "__main__":
    main()
