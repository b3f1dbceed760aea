"""The fake (meta) implementation against the real one."""

from __future__ import annotations

import torch

from moeproof.verify.trial import Trial
from moeproof.verify.violation import Violation


def fake_op(trial: Trial) -> list[Violation]:
    """Compare shapes, dtypes and strides of the fake implementation with those of the real result."""
    if "fake" not in trial.subject.tags:
        return []
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in trial.args.items()}
        results = trial.call(fake, {})
    for name, value in (results or {}).items():
        real = trial.made[name]
        got = (tuple(value.shape), value.dtype, value.stride(), value.device.type)
        want = (tuple(real.shape), real.dtype, real.stride(), real.device.type)
        if got != want:
            return [Violation("fake_op", f"{name}: the fake implementation gives {got}, the real one {want}")]
    return []
