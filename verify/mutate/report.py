"""What a mutation run found, as JSON and as Markdown."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moeproof.verify.files import write_text

from .engine import SAME_CODE, Outcome
from .judge import DOES_NOT_COMPILE, EQUIVALENT, STATUSES, SURVIVED, Verdict
from .mutant import Mutant
from .operators import OPERATORS

Pairs = list[tuple[Mutant, Verdict]]


def score(pairs: Iterable[tuple[Mutant, Verdict]]) -> float | None:
    """Return the share of killed mutants among those that compile and are not equivalent; None if there are none."""
    dead = [v.dead for _, v in pairs if v.status not in (EQUIVALENT, DOES_NOT_COMPILE)]
    return sum(dead) / len(dead) if dead else None


def percent(share: float | None) -> str:
    """Return a share as text; never rounded up to 100%."""
    if share is None:
        return "–"
    return f"{min(share * 100, 99.9) if share < 1 else 100:.1f}%"


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return a run's figures."""
    pairs = outcome.verdicts
    dead = [v for _, v in pairs if v.dead]
    return {
        "score": score(pairs),
        "mutants": len(pairs),
        "untried": outcome.untried,
        "statuses": {s: sum(v.status == s for _, v in pairs) for s in STATUSES},
        "median_cases_to_kill": statistics.median(v.cases for v in dead) if dead else None,
        "median_seconds_to_kill": round(statistics.median(v.seconds for v in dead), 3) if dead else None,
        "process_seconds": round(sum(v.seconds for _, v in pairs), 1),
        "seconds": round(outcome.seconds, 1),
        "checks": dict(Counter(v.check for v in dead).most_common()),
        "stale": outcome.stale,
        "refuted": outcome.refuted,
    }


def grouped(pairs: Pairs, by: Callable[[Mutant], str]) -> dict[str, Pairs]:
    """Return the mutants by file, operator or the like, ordered by name."""
    groups: dict[str, Pairs] = defaultdict(list)
    for mutant, verdict in pairs:
        groups[by(mutant)].append((mutant, verdict))
    return dict(sorted(groups.items()))


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return all of a run as JSON data."""
    rows = []
    for mutant, verdict in outcome.verdicts:
        names = ("id", "file", "line", "function", "operator", "node", "replacement", "ordinal")
        rows.append({n: getattr(mutant, n) for n in names} | verdict.to_json())
        if verdict.status == SURVIVED:
            rows[-1]["diff"] = mutant.diff(outcome.sources[mutant.file])
    plan = outcome.plan
    settings = {"cases": plan.cases, "seed": plan.seed, "sample": plan.sample, "seconds": plan.seconds}
    return {"summary": summary(outcome), "settings": settings, "mutants": rows}


def as_markdown(outcome: Outcome) -> str:
    """Return a run's report for people."""
    pairs, figures = outcome.verdicts, summary(outcome)
    counts = figures["statuses"]
    told = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in counts.items() if n)
    lines = [
        "# Mutation score",
        "",
        f"**{percent(figures['score'])}** of {sum(counts.values()) - counts[EQUIVALENT] - counts[DOES_NOT_COMPILE]} "
        f"mutants are killed: {told}" + (f"; {outcome.untried} not tried" if outcome.untried else "") + ".",
        "",
        f"Median to a kill: {figures['median_cases_to_kill']} cases, {figures['median_seconds_to_kill']} s. "
        f"{outcome.plan.cases} cases an op, seed {outcome.plan.seed}, {outcome.seconds:.0f} s.",
        "",
    ]
    lines += _problems(outcome)
    lines += _table("file", grouped(pairs, lambda m: m.file))
    lines += _table("operator", grouped(pairs, lambda m: m.operator), {n: o.meaning for n, o in OPERATORS.items()})
    lines += _checks(pairs)
    lines += _survivors(outcome)
    lines += _equivalents(pairs)
    return "\n".join(lines).rstrip() + "\n"


def _problems(outcome: Outcome) -> list[str]:
    lines = [f"- stale entry in {outcome.plan.equivalents.name}: `{title}`" for title in outcome.stale]
    lines += [f"- listed as equivalent, yet killed: {title}" for title in outcome.refuted]
    return ["## The list of equivalent mutants is wrong", "", *lines, ""] if lines else []


def _table(title: str, groups: dict[str, Pairs], meanings: dict[str, str] | None = None) -> list[str]:
    lines = [
        f"## By {title}",
        "",
        f"| {title} | mutants | killed | survived | equivalent | not compiled | score |"
        + (" meaning |" if meanings else ""),
        f"|---|---|---|---|---|---|---|{'---|' if meanings else ''}",
    ]
    for name, pairs in groups.items():
        count = Counter("killed" if v.dead else v.status for _, v in pairs)
        cells = [len(pairs), *(count[s] for s in ("killed", SURVIVED, EQUIVALENT, DOES_NOT_COMPILE))]
        row = f"| {name} | {' | '.join(map(str, cells))} | {percent(score(pairs))} |"
        lines.append(row + (f" {meanings[name]} |" if meanings else ""))
    return [*lines, ""]


def _checks(pairs: Pairs) -> list[str]:
    """Tell which check kills what: operators down, checks across."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant, verdict in pairs:
        if verdict.dead:
            table[mutant.operator][verdict.check] += 1
    totals: Counter[str] = Counter()
    for row in table.values():
        totals.update(row)
    checks = [name for name, _ in totals.most_common()]
    lines = ["## Which check kills", "", f"| operator | {' | '.join(checks)} |", f"|---|{'---|' * len(checks)}"]
    lines += [f"| {n} | {' | '.join(str(row[c] or '') for c in checks)} |" for n, row in sorted(table.items())]
    lines.append(f"| **all** | {' | '.join(str(totals[c]) for c in checks)} |")
    return [*lines, ""] if checks else []


def _survivors(outcome: Outcome) -> list[str]:
    lines = ["## Survivors", ""]
    for mutant, verdict in outcome.verdicts:
        if verdict.status == SURVIVED:
            text = verdict.message or f"{verdict.cases} cases reach it and pass"
            lines += [f"### {mutant.title}", "", f"`{mutant.id}`: {text}.", ""]
            lines += ["```diff", mutant.diff(outcome.sources[mutant.file]).rstrip(), "```", ""]
    return lines if len(lines) > 2 else ["No mutant survives.", ""]


def _equivalents(pairs: Pairs) -> list[str]:
    reasons: dict[str, list[Mutant]] = defaultdict(list)
    for mutant, verdict in pairs:
        if verdict.status == EQUIVALENT:
            reasons[verdict.message].append(mutant)
    if not reasons:
        return []
    lines = ["## Equivalent", ""]
    if same := reasons.pop(SAME_CODE, []):
        lines += [f"{len(same)} mutants: {SAME_CODE}.", ""]
    for reason, mutants in reasons.items():
        lines += [f"- {reason}", *(f"  - {m.title}" for m in mutants)]
    return [*lines, ""]


def write(outcome: Outcome) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.md`` below the run's folder; return where."""
    paths = outcome.plan.out / "report.json", outcome.plan.out / "report.md"
    write_text(paths[0], json.dumps(as_json(outcome), indent=1) + "\n")
    write_text(paths[1], as_markdown(outcome))
    return paths
