"""The oracle of append_shared_experts: the answer is unique, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moeproof.verify.violation import MAX_ROWS, Violation

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def expected_append(args: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the outputs by name; weights as the bits of their dtype."""
    ids, weights = args["topk_ids"], args["topk_weights"]
    shared_count = int(args.get("num_fused_shared_experts", 1))
    tokens = ids.shape[0]
    first = int(args["num_experts"])
    shared = args["shared_weights"]
    wide = shared.reshape(-1, 1) if shared.dim() == 1 else shared
    cast = wide.to(weights.dtype).expand(tokens, shared_count).contiguous()
    tail = torch.arange(first, first + shared_count, device=ids.device, dtype=ids.dtype)
    bits = _BITS[weights.dtype]
    all_ids = torch.cat([ids, tail.expand(tokens, shared_count)], 1)
    all_bits = torch.cat([weights.contiguous().view(bits), cast.view(bits)], 1)
    limit = args.get("num_token_non_padded")
    if limit is not None:
        padding = (torch.arange(tokens, device=ids.device) >= limit.reshape(()))[:, None]
        all_ids = torch.where(padding, -1, all_ids)
        all_bits = torch.where(padding, 0, all_bits)
    return {"ids": all_ids, "weights": all_bits}


def judge_append(args: Mapping[str, Any], outputs: Mapping[str, torch.Tensor]) -> list[Violation]:
    """Judge a result of append_shared_experts.

    Parameters
    ----------
    args : mapping
        The arguments by name.
    outputs : mapping
        ``ids`` and ``weights``, on the same device.

    Returns
    -------
    list of Violation
        Of class ``ids_invalid`` or ``weights``.
    """
    expected = expected_append(args)
    weights = outputs["weights"]
    got_bits = weights.contiguous().view(_BITS[weights.dtype])
    wrong_ids = outputs["ids"] != expected["ids"]
    wrong_bits = got_bits != expected["weights"]
    # A NaN that was cast has no one bit pattern; a NaN that was copied has.
    cast_nan = expected["weights"].view(weights.dtype).isnan() & weights.isnan()
    cast_nan[:, : args["topk_ids"].shape[1]] = False
    wrong_bits &= ~cast_nan
    found = []
    for check, wrong, name in (("ids_invalid", wrong_ids, "ids"), ("weights", wrong_bits, "weights")):
        rows = wrong.any(1).nonzero().flatten()
        if len(rows):
            row = int(rows[0])
            place = int(wrong[row].nonzero()[0])
            want = expected[name][row] if name == "ids" else expected[name].view(weights.dtype)[row]
            message = (
                f"row {row}: {name} are {outputs[name][row].tolist()}, expected {want.tolist()} "
                f"(first difference at place {place})"
            )
            found.append(Violation(check, message, tuple(rows[:MAX_ROWS].tolist()), len(rows)))
    return found
