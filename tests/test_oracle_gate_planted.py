"""The oracle of fused_gate rejects each planted wrong result, with the right class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle_kit import INF, NAN, Args, Outputs, evaluate, failed, i32
from zoo.right import Gate32

from moeproof.verify.oracle.gate import (
    GateRules,
    judge_gate,
    unmap,
)

E, K, S, T = 32, 6, 1, 12


def planted(**changes: Any) -> tuple[Args, Outputs]:
    """Return arguments and a right result: 12 rows, distinct scores but for ids 3, 9 and 30 of row 5."""
    torch.manual_seed(3)
    logits = torch.stack([torch.randperm(E) for _ in range(T)]).float() / 8 - 2
    logits[5, [3, 9, 30]] = 3.0
    args: Args = {
        "logits": logits,
        "topk": K,
        "num_fused_shared_experts": S,
        "num_expert_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "num_token_non_padded": i32(T - 2),
        "expert_map": (torch.arange(E + S, dtype=torch.int32) * 5 + 2) % 37,
        **changes,
    }
    return args, evaluate(Gate32, args)


def swap(out: Outputs, name: str, row: int, a: int, b: int) -> None:
    out[name][row, [a, b]] = out[name][row, [b, a]]


def swap_pairs(args: Args, out: Outputs) -> None:
    swap(out, "indices", 0, 0, 1)
    swap(out, "weights", 0, 0, 1)


def swap_ids(args: Args, out: Outputs) -> None:
    swap(out, "indices", 0, 1, 2)


def swap_tied(args: Args, out: Outputs) -> None:
    swap(out, "indices", 5, 0, 1)


def duplicate(args: Args, out: Outputs) -> None:
    out["indices"][2, 1] = out["indices"][2, 0]


def worse(args: Args, out: Outputs) -> None:
    out["indices"][4, 4] = args["expert_map"][int(args["logits"][4].argmin())]


def dropped_group(args: Args, out: Outputs) -> None:
    """Route row 1 as if its best group didn't exist."""
    logits = args["logits"].clone()
    best = int(unmap(out["indices"].long(), args["expert_map"])[1, 0]) // 8
    logits[1, best * 8 : best * 8 + 8] = -50
    other = evaluate(Gate32, args | {"logits": logits})
    for name in out:
        out[name][1] = other[name][1]


def set_weight(row: int, place: int, factor: float) -> Callable[[Args, Outputs], None]:
    def change(args: Args, out: Outputs) -> None:
        out["weights"][row, place] *= factor

    return change


def set_id(row: int, place: int, value: int) -> Callable[[Args, Outputs], None]:
    def change(args: Args, out: Outputs) -> None:
        out["indices"][row, place] = value

    return change


def swap_weights(args: Args, out: Outputs) -> None:
    swap(out, "weights", 3, 0, 3)


def shared_off(args: Args, out: Outputs) -> None:
    out["indices"][7, K - 1] = args["expert_map"][E - 1]


def routed_is_shared(args: Args, out: Outputs) -> None:
    swap(out, "indices", 7, 0, K - 1)


def zero_row(args: Args, out: Outputs) -> None:
    out["weights"][6] = 0


def nan_all(args: Args, out: Outputs) -> None:
    out["weights"].fill_(NAN)


def unpadded(args: Args, out: Outputs) -> None:
    other = evaluate(Gate32, args | {"num_token_non_padded": i32(T - 1)})
    out["indices"].copy_(other["indices"])
    out["weights"].copy_(other["weights"])


def padded_weight(args: Args, out: Outputs) -> None:
    out["weights"][T - 1, 2] = 1e-30


def padded_nan(args: Args, out: Outputs) -> None:
    out["weights"][T - 1, 2] = NAN


def padded_too_early(args: Args, out: Outputs) -> None:
    out["indices"][T - 3], out["weights"][T - 3] = -1, 0


def unmapped(args: Args, out: Outputs) -> None:
    out["indices"].copy_(unmap(out["indices"].long(), args["expert_map"]).int())


def rows_shifted(args: Args, out: Outputs) -> None:
    for name in out:
        out[name][: T - 2] = out[name][: T - 2].roll(1, 0)


PLANTED: list[tuple[str, Callable[[Args, Outputs], None]]] = [
    ("selection", swap_pairs),
    ("selection", swap_ids),
    ("tie_order", swap_tied),
    ("ids_invalid", duplicate),
    ("selection", worse),
    ("selection", dropped_group),
    ("weights", set_weight(0, 2, 1 + 1e-5)),
    ("weights", set_weight(0, 2, 1 - 1e-5)),
    ("weights", set_weight(0, 4, -1.0)),
    ("weights", set_weight(0, 0, INF)),
    ("nan_policy", set_weight(8, 1, NAN)),
    ("weights", set_weight(1, K - 1, 1 + 1e-5)),
    ("nan_policy", set_weight(1, K - 1, NAN)),
    ("weights", swap_weights),
    ("ids_invalid", shared_off),
    ("ids_invalid", routed_is_shared),
    ("ids_invalid", set_id(0, 0, -1)),
    ("ids_invalid", set_id(0, 0, 2**31 - 1)),
    ("ids_invalid", set_id(0, 0, -(2**31))),
    ("ids_invalid", set_id(0, 3, 37)),
    ("ids_invalid", set_id(T - 1, 0, 0)),
    ("weights", zero_row),
    ("nan_policy", nan_all),
    ("ids_invalid", unpadded),
    ("weights", padded_weight),
    ("weights", padded_nan),
    ("ids_invalid", padded_too_early),
    ("ids_invalid", unmapped),
    ("selection", rows_shifted),
]


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax", "sqrtsoftplus"])
@pytest.mark.parametrize(("check", "change"), PLANTED, ids=[f"{c}-{f.__qualname__.split('.')[0]}" for c, f in PLANTED])
def test_rejects_planted(check: str, change: Callable[[Args, Outputs], None], scoring: str) -> None:
    args, outputs = planted(scoring=scoring)
    assert failed(args, outputs) == set()
    change(args, outputs)
    assert check in failed(args, outputs)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("on_output", [True, False])
def test_rejects_forgotten_flags(renormalize: bool, on_output: bool) -> None:
    args, outputs = planted(renormalize=renormalize, apply_routed_scaling_factor_on_output=on_output)
    assert failed(args, outputs) == set()
    for name in ("renormalize", "apply_routed_scaling_factor_on_output"):
        other = evaluate(Gate32, args | {name: not args[name]})
        assert failed(args, other) == {"weights"}, name


def test_only_the_wrong_row_fails_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeproof.verify.oracle.gate.CHUNK", 4 * E)
    args, outputs = planted()
    worse(args, outputs)
    padded_weight(args, outputs)
    failures = judge_gate(args, outputs, GateRules())
    rows = {name: mask.nonzero().flatten().tolist() for name, mask in failures.masks.items()}
    assert rows == {
        "ids_invalid": [],
        "nan_policy": [],
        "selection": [4],
        "tie_order": [],
        "weights": [T - 1],
    }
    assert "place 4" in failures.explain["selection"](4)
    assert "padded row" in failures.explain["weights"](T - 1)
