"""Mutation operators: what each makes of CUDA code, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tree_sitter_cuda")

from moeproof.verify.mutate import mutant as mutants
from moeproof.verify.mutate.mutant import Mutant, mutants_of, sample
from moeproof.verify.mutate.operators import OPERATORS
from moeproof.verify.mutate.source import Source, SourceError, files_below, function_of, read, users_of

KERNELS = Path(mutants.__file__).parents[2] / "kernels"


def body(text: str) -> Source:
    return Source("k.cu", f"__global__ void f(P p, int* a, int n) {{ {text} }}\n".encode())


def made(text: str, operator: str) -> list[str]:
    """Return what an operator makes of a function body."""
    source = body(text)
    before, after = source.data.decode().split(text)
    results = [m.apply(source).decode() for m in mutants_of(source, [operator])]
    return [r.removeprefix(before).removesuffix(after) for r in results]


EXAMPLES = [
    ("barrier_removed", "__syncthreads();", [";"]),
    ("barrier_removed", "team_sync<SPLIT>();", [";"]),
    ("barrier_weakened", "__syncthreads();", ["__syncwarp();"]),
    ("warp_sync_removed", "__syncwarp();", [";"]),
    ("warp_sync_weakened", "__syncwarp();", ["__syncwarp(threadIdx.x & 16 ? 0xffff0000u : 0x0000ffffu);"]),
    ("fence_removed", "__threadfence_block();", [";"]),
    ("warp_mask", "x = __ballot_sync(~0u, b);", ["x = __ballot_sync(0x7fffffffu, b);"]),
    ("shuffle_lane", "x = __shfl_sync(~0u, v, w);", ["x = __shfl_sync(~0u, v, (w) + 1);"]),
    ("shuffle_kind", "x = __shfl_up_sync(~0u, v, 1);", ["x = __shfl_down_sync(~0u, v, 1);"]),
    (
        "atomic_to_plain",
        "atomicAdd(&a[0], 3);",
        ["[&] { auto* at = &a[0]; auto old = *at, value = 3; *at = old + value; return old; }();"],
    ),
    ("tie_break", "x = a < b || (a == b && i < j);", ["x = a < b || (a == b && i > j);"]),
    ("relational", "x = a < b;", ["x = a <= b;"]),
    ("relational", "x = a == b;", ["x = a != b;"]),
    ("relational", "x = a < b >> 5;", ["x = a <= b >> 5;"]),  # misread by the parser as a template
    ("logical", "x = a && b;", ["x = (a) || (b);"]),
    ("guard_dropped", "x = a && b;", ["x = a;", "x = b;"]),
    ("condition_negated", "if (a < n) b = 1;", ["if (!(a < n)) b = 1;"]),
    ("condition_negated", "x = a ? 1 : 2;", ["x = a ? 2 : 1;"]),
    ("condition_negated", "if (a == n) b = 1;", []),  # `relational` has it
    ("mask_dropped", "if (a < n) b = 1;", ["if (true) b = 1;"]),
    ("mask_dropped", "if (a < n) b = 1; else b = 2;", []),
    ("loop_removed", "for (int i = 0; i < n; ++i) x = i;", [";"]),
    ("last_skipped", "for (int i = 0; i < n; ++i) x = i;", ["for (int i = 0; i < n - 1; ++i) x = i;"]),
    ("last_skipped", "for (int i = n; i >= 0; --i) x = i;", ["for (int i = n; i >= 0 + 1; --i) x = i;"]),
    ("last_skipped", "for (int i = 0; i < n >> 5; ++i) x = i;", ["for (int i = 0; i < (n >> 5) - 1; ++i) x = i;"]),
    ("one_too_many", "for (int i = 0; i < n; ++i) x = i;", ["for (int i = 0; i < n + 1; ++i) x = i;"]),
    ("first_skipped", "for (int i = 0; i < n; ++i) x = i;", ["for (int i = 0 + 1; i < n; ++i) x = i;"]),
    ("statement_removed", "x = 1; return;", ["; return;", "x = 1; ;"]),
    ("narrowed", "const long long at = n;", ["const int at = n;"]),
    ("narrowed", "const long long* at = n;", []),
    ("cast_dropped", "x = (long long)n * 3;", ["x = (n) * 3;"]),
    ("cast_dropped", "x = static_cast<float>(n);", ["x = (n);"]),
    ("wrong_dtype", "x = static_cast<const int*>(q)[n];", ["x = static_cast<const long long*>(q)[n];"]),
    ("wrong_conversion", "x = half_to_float(n);", ["x = bfloat_to_float(n);"]),
    ("min_max", "x = min(a, b);", ["x = max(a, b);"]),
    ("index", "x = a[n];", ["x = a[n - 1];"]),
    ("index", "x = a[i * 2];", ["x = a[(i * 2) - 1];"]),
    ("array_size", "__shared__ int s[32];", ["__shared__ int s[32 - 1];"]),
    ("literal", "x = n + 31;", ["x = n + 30;"]),
    ("literal", "x = n + 32u;", ["x = n + 33u;"]),
    ("literal", "for (int i = 0; i < 3; ++i) x = i;", []),  # where loops start and end is changed by others
    ("literal", "x = 0x7fffffff;", ["x = 0x7ffffffe;"]),
    ("constant", "x = 0.5f;", ["x = (0.5f * 1.0625f);"]),
    ("constant", "x = 0.f;", ["x = 1.f;"]),
    ("arithmetic", "x = n + m;", ["x = (n - m);"]),
    ("rounded_arithmetic", "x = __fadd_rn(y, z);", ["x = __fsub_rn(y, z);"]),
    ("bitwise", "x = n & m;", ["x = (n | m);"]),
    ("shift", "x = n >> m;", ["x = (n >> (m + 1));"]),
    ("unary_dropped", "x = -n;", ["x = (n);"]),
    ("accumulation", "x += n;", ["x = n;"]),
    ("update", "++x;", ["--x;"]),
    ("initial_value", "int x = 0;", ["int x = 0x2a5a5a5a;"]),
    ("initial_value", "const int x = 0;", []),
    ("initial_value", "for (int i = 0; i < n; ++i) x = i;", []),
]


@pytest.mark.parametrize(("operator", "text", "results"), EXAMPLES)
def test_an_operator_makes_what_it_says(operator: str, text: str, results: list[str]) -> None:
    assert made(text, operator) == results


def test_every_operator_has_an_example() -> None:
    assert {name for name, _, _ in EXAMPLES} == set(OPERATORS)


@pytest.mark.parametrize(
    "text",
    [
        "// a < b; __syncthreads();\n",
        '/* n + 1 */ asm("add.s32 %0, %1, 1;" : "=r"(a) : "r"(n));',
        'static_assert(sizeof(int) == 4 && N < 3, "32 bits");',
        "\n#ifdef __CUDA_ARCH__\n a[n] = n + 1;\n#endif\n",
        "\n#if __CUDA_ARCH__ >= 900\n a[n] = n + 1;\n#endif\n",
        "\n#pragma unroll 4\n",
    ],
)
def test_what_does_not_run_is_left_alone(text: str) -> None:
    # What is removed as a whole is the statement around the assembly.
    found = [m for m in mutants_of(body(text)) if m.operator != "statement_removed"]
    assert found == []


def test_the_branch_that_a_host_compiler_sees_is_mutated() -> None:
    text = (
        "\n#ifdef __CUDA_ARCH__\n x = n + 1;\n#else\n x = n - 1;\n#endif\n#ifndef __CUDA_ARCH__\n x = n * m;\n#endif\n"
    )
    assert [m.node for m in mutants_of(body(text), ["arithmetic"])] == ["n - 1", "n * m"]


def test_an_id_outlives_moved_lines_and_tells_twins_apart() -> None:
    source = Source("k.cu", b"void f(int n) { x = n + 1; x = n + 1; }\nstruct S { void g() { x = n + 1; } };\n")
    moved = Source("k.cu", b"// a new line\n\n\n" + source.data)
    found, again = mutants_of(source, ["arithmetic"]), mutants_of(moved, ["arithmetic"])
    assert [m.id for m in found] == [m.id for m in again]
    assert len({m.id for m in found}) == 3
    assert [(m.function, m.ordinal) for m in found] == [("f", 0), ("f", 1), ("S::g", 0)]
    assert found[0].line + 3 == again[0].line


def test_no_two_mutants_of_a_kernel_give_the_same_text_and_ids_are_unique() -> None:
    source = read(KERNELS / "gate_groups.cuh")
    found = mutants_of(source)
    assert len({m.apply(source) for m in found}) == len(found) == len({m.id for m in found})


def test_ids_do_not_depend_on_the_operators_asked_for() -> None:
    source = read(KERNELS / "gate_groups.cuh")
    everything = {m.id for m in mutants_of(source)}
    assert all(m.id in everything for name in OPERATORS for m in mutants_of(source, [name]))


def test_a_diff_shows_the_change() -> None:
    source = Source("k.cu", b"void f(int n) {\n  x = n + 1;\n}\n")
    (mutant,) = mutants_of(source, ["arithmetic"])
    assert "-  x = n + 1;\n+  x = (n - 1);\n" in mutant.diff(source)


def test_the_shipped_kernels_are_parsed_and_every_operator_applies_to_them() -> None:
    found = [m for p in files_below([KERNELS]) for m in mutants_of(read(p))]
    # They hold no memory fence.
    assert {m.operator for m in found} >= set(OPERATORS) - {"fence_removed", "update", "tie_break"}
    assert len(found) > 1000


def test_a_sample_is_repeatable_and_stratified() -> None:
    found = [m for p in files_below([KERNELS]) for m in mutants_of(read(p))]
    operators = {m.operator for m in found}
    chosen = sample(found, 80, seed=3)
    assert chosen == sample(list(found), 80, seed=3)
    assert chosen != sample(found, 80, seed=4)
    assert len(chosen) == 80
    assert {m.operator for m in chosen} == operators
    assert len(sample(found, 5, seed=3)) == 5
    assert sample(found, 10**6, seed=3) == found


def test_a_sample_changes_little_when_the_sources_do() -> None:
    found = [m for p in files_below([KERNELS]) for m in mutants_of(read(p))]
    before = {m.id for m in sample(found, 100, seed=3)}
    after = {m.id for m in sample([m for m in found if m.id not in before][:1] + found[5:], 100, seed=3)}
    assert len(before & after) > 80


def test_broken_sources_are_refused_by_name_and_line() -> None:
    with pytest.raises(SourceError, match=r"k\.cu:2 can't be parsed"):
        mutants_of(Source("k.cu", b"void f() {\n  x = = 1;\n}\n"))


def test_macros_of_the_file_are_no_obstacle() -> None:
    text = b"""#define CLUSTER(n) __cluster_dims__((n), 1, 1)
__global__ void CLUSTER(R) __launch_bounds__(512) f(P p) { x = n + 1; }
"""
    source = Source("k.cu", text)
    (mutant,) = mutants_of(source, ["arithmetic"])
    assert mutant.apply(source) == text.replace(b"n + 1", b"(n - 1)")


def test_paths_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text('#include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text('#include "c.cuh"\n')
    (tmp_path / "c.cuh").write_text("")
    (tmp_path / "d.cu").write_text("")
    assert [p.name for p in files_below([tmp_path])] == ["a.cu", "b.cuh", "c.cuh", "d.cu"]
    assert users_of(tmp_path) == {"a.cu": {"a.cu"}, "b.cuh": {"a.cu"}, "c.cuh": {"a.cu"}, "d.cu": {"d.cu"}}
    for wrong in ([tmp_path / "none.cu"], [tmp_path / "sub"], [Path(__file__)]):
        with pytest.raises(SourceError, match=r"allowed: a \.cu"):
            files_below(wrong)
    with pytest.raises(SourceError, match="allowed: one folder"):
        files_below([tmp_path / "a.cu", KERNELS])


def test_names_of_functions() -> None:
    source = Source(
        "k.cu", b"template <int N> __global__ void __launch_bounds__(N) f(P p) { auto g = [=](int i) { x = 1; }; }"
    )
    node = next(n for n in source.nodes() if n.type == "assignment_expression")
    assert function_of(source, node) == "f"


def test_a_mutant_is_described_in_a_line() -> None:
    mutant = Mutant("k.cu", "f", "literal", "1" * 200, "2", 0, 0, 1, "2", 7)
    assert mutant.title.startswith("k.cu:7 f: literal: 111")
    assert len(mutant.title) < 140
