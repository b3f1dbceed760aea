"""Runs one case on one subject in this process, guarded, and judges it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moeproof.strategies.case import Case, literal, plain

from .contract import arguments, judge, output_specs
from .extras import EXTRAS, Extra, named
from .guard import POISONS, Carved, Kept, as_bytes, carve, carve_pair, poison_allocator
from .subject import Call, Subject
from .trial import Trial, settle
from .violation import MAX_ROWS, PENDING, ReportedError, Violation


@dataclass(frozen=True)
class Outcome:
    """What one run of a case gave.

    Attributes
    ----------
    violations : tuple of Violation
        Failed checks; empty if all is right.
    rows : int
        Rows (tokens) judged.
    path : str
        The dispatch path, where the subject names it.
    fatal : bool
        The process can't be used any more (a sticky CUDA error).
    """

    violations: tuple[Violation, ...] = ()
    rows: int = 0
    path: str = ""
    fatal: bool = False

    @property
    def checks(self) -> tuple[str, ...]:
        """The classes of the failed checks."""
        return tuple(v.check for v in self.violations)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON data."""
        return {
            "violations": [v.to_json() for v in self.violations],
            "rows": self.rows,
            "path": self.path,
            "fatal": self.fatal,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        """Read an outcome from JSON data."""
        found = tuple(Violation.from_json(v) for v in data["violations"])
        return cls(found, data["rows"], data["path"], data["fatal"])


@dataclass
class Runner:
    """Runs cases on one subject.

    Attributes
    ----------
    subject : Subject
        The implementation under test.
    device : torch.device
        Where tensors live.
    """

    subject: Subject
    device: torch.device
    _loaded: Call = field(init=False)
    _extra: str = field(init=False, default="")
    _own: Exception | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._loaded = self.subject.load()

    def call(self, args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """Call the subject; what it raises, or returns that is no mapping, is held to be its own."""
        try:
            made = self._loaded(args, outputs)
            return None if made is None else dict(made)
        except Exception as error:
            self._own = error
            raise

    @property
    def device_name(self) -> str:
        """Where cases run, in words."""
        return name_device(self.device)

    # Inference mode takes a third off the host's cost of a torch call, and is how serving engines run these kernels.
    @torch.inference_mode()
    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        """Run a case twice with different poisons, compare what must not change, and judge the result.

        Parameters
        ----------
        case : Case
            The case, of the subject's op.
        extras : tuple of str
            Names of further checks to run if the case itself is right: of `EXTRAS`, or classes of their violations.
        refusal : bool
            The case is outside the domain: the subject has to raise.

        Raises
        ------
        MemoryError
            If the device's memory does not suffice, twice: other processes may have taken it.
        Exception
            Whatever goes wrong outside the subject's call on a device that still works: a fault of the harness.
        """
        try:
            return self._run(case, extras, refusal=refusal)
        except MemoryError:
            torch.cuda.empty_cache()
        return self._run(case, extras, refusal=refusal)

    def _run(self, case: Case, extras: tuple[str, ...], *, refusal: bool) -> Outcome:
        tokens = _tokens(case)
        self._extra = ""
        path = self.subject.path(case) if self.subject.path is not None and not refusal else ""
        try:
            if refusal:
                found = self._refused(case)
            else:
                found = self._judged(case, extras)
        except Exception as error:
            if is_no_memory(error):
                raise MemoryError(describe_error(error)) from error
            if not self._is_subjects(error):
                raise
            return self._raised(error, tokens, path, refusal)
        finally:
            self._own = None
        return Outcome(tuple(found), tokens, path)

    @torch.inference_mode()
    def literal_outputs(self, case: Case) -> dict[str, Any]:
        """Run a case once and return its outputs as JSON data, unjudged; what went wrong under ``error``."""
        try:
            tensors, _ = case.build(self.device)
            carved = carve(output_specs(case, self.subject), self.device, POISONS[0])
            made = self._launch(arguments(case, tensors), carved)
            return {name: plain(list(literal(value))) for name, value in made.items()}
        except Exception as error:  # whatever a subject raises belongs into the report
            return {"error": describe_error(error), "fatal": is_context_lost(self.device)}
        finally:
            self._own = None

    def _launch(self, args: dict[str, Any], carved: Carved) -> dict[str, torch.Tensor]:
        made = self.call(args, carved.outputs)
        settle(self.device)
        return dict(carved.outputs if made is None else made)

    def _judged(self, case: Case, extras: tuple[str, ...]) -> list[Violation]:
        tensors, storages = case.build(self.device)
        kept = Kept(storages)
        specs = output_specs(case, self.subject)
        args = arguments(case, tensors)
        pair = carve_pair(specs, self.device)
        results: list[dict[str, torch.Tensor]] = []
        left: list[torch.Tensor] = []
        for carved in pair.runs:
            poison_allocator(specs, self.device, carved.poison)
            results.append(self._launch(args, carved))
            # Each run, and the judge, gets what the case says, not what the subject left behind.
            left.append(kept.now())
            kept.restore()
        made, again = results
        shared = [n for n in specs if n in made and n in again and _alike(made[n], again[n])]
        if pair.hold(made, again):
            differ_flags = [pair.outputs_differ()]
        else:
            differ_flags = [(as_bytes(made[n]) != as_bytes(again[n])).any() for n in shared]
        flags = [pair.zones_hit(), *map(kept.changed, left), *differ_flags]
        zones_hit, first_touched, second_touched, *differ_in = torch.stack(flags).tolist()
        found: list[Violation] = []
        if zones_hit:
            found.append(Violation("guard_zone", pair.first_hit()))
        if first_touched or second_touched:
            names = [name for now in left for name in kept.names_changed(now)]
            changed = ", ".join(dict.fromkeys(names))
            found.append(Violation("input_modified", f"{changed} changed, or memory beside it"))
        rough: set[int] = set()
        differ = any(differ_in)
        if differ:
            unstable, rough = self._unstable({n: made[n] for n in shared}, again)
            found += unstable
        found += [v for v in judge(case, self.subject, args, made) if not _explained(v, rough, found)]
        # Other outputs, allowed to differ from run to run, have to be right in their own way.
        if not found and (differ or len(shared) < len(specs)) and not self.subject.bitwise:
            found += judge(case, self.subject, args, again)
        if not found and len(shared) < len(specs):
            lost = next(n for n in specs if n not in shared)
            forms = [
                f"{tuple(t.shape)} {t.dtype}" if t is not None else "missing" for t in (made.get(lost), again.get(lost))
            ]
            found.append(Violation("nondeterminism", f"{lost} is {forms[0]} in one run and {forms[1]} in the next"))
        # A result that is wrong already proves nothing in comparison with another.
        return found or self._further(Trial(self.subject, self.call, case, args, made), extras)

    def _further(self, trial: Trial, extras: tuple[str, ...]) -> list[Violation]:
        """Run further checks; one violation of a class is enough."""
        found: dict[str, Violation] = {}
        for name, extra in named(extras).items():
            if extra.check not in found:
                self._extra = name
                found.update((v.check, replace(v, extras=(name,))) for v in self._confirmed(extra, trial))
        return list(found.values())

    def _confirmed(self, extra: Extra, trial: Trial) -> list[Violation]:
        """Run a further check, and once more if it fails: what fails by chance only is no property of its variant."""
        found = extra.run(trial)
        if not found or not extra.repeatable or not self.subject.bitwise or extra.run(trial):
            return found
        return [replace(v, check="nondeterminism", message=f"in one run of two, {v.message}") for v in found]

    def _unstable(
        self, made: Mapping[str, torch.Tensor], again: Mapping[str, torch.Tensor]
    ) -> tuple[list[Violation], set[int]]:
        """Tell what was never written from what differs between two runs, and in which rows."""
        found: dict[str, Violation] = {}
        rough: set[int] = set()
        for name, value in made.items():
            one, two = as_bytes(value), as_bytes(again[name])
            differ = one != two
            # All bytes of an element: single bytes of two different results can look like poison.
            item = value.dtype.itemsize
            untouched = ((one == POISONS[0]) & (two == POISONS[1])).unflatten(1, (one.shape[1] // item, item))
            never = untouched.all(2, keepdim=True).expand_as(untouched).reshape(one.shape)
            for check, mask in (("unwritten", never), ("nondeterminism", differ & ~never)):
                if check == "nondeterminism" and not self.subject.bitwise:
                    continue
                rows = mask.any(1).nonzero().flatten().tolist()
                rough |= set(rows)
                if not rows or check in found:
                    continue
                row = rows[0]
                place = int(mask[row].nonzero()[0]) // item
                where = f"{name}[{row}]" if value.dim() == 1 else f"{name}[{row}][{place}]"
                if check == "unwritten":
                    message = f"{where} is never written ({int(mask.sum()) // item or 1} elements of {name})"
                else:
                    pair = [_item(t, row, place) for t in (value, again[name])]
                    message = f"{where} is {pair[0]} in one run and {pair[1]} in the next"
                found[check] = Violation(check, message, tuple(rows[:MAX_ROWS]), len(rows))
        return list(found.values()), rough

    def _refused(self, case: Case) -> list[Violation]:
        tensors, _ = case.build(self.device)
        args = arguments(case, tensors)
        try:
            carved = carve(output_specs(case, self.subject), self.device, POISONS[0])
        except (RuntimeError, ValueError, ArithmeticError):
            # No outputs go with such arguments; whether they are refused is for the subject to say.
            carved = carve({}, self.device, POISONS[0])
        self._launch(args, carved)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return [Violation("domain", f"accepts silently what it claims to refuse: {case.note}")]

    def _is_subjects(self, error: Exception) -> bool:
        """Say whether an error is a result: raised by the subject, by a variant of it, or late, by what it launched."""
        late = self.device.type == "cuda" and "CUDA error" in str(error)
        return error is self._own or bool(self._extra) or late or is_context_lost(self.device)

    def _raised(self, error: Exception, tokens: int, path: str, refusal: bool) -> Outcome:
        text = describe_error(error)
        extras = (self._extra,) if self._extra else ()
        lost = is_context_lost(self.device)
        if isinstance(error, ReportedError):
            return Outcome((replace(error.violation, extras=extras),), tokens, path, fatal=lost)
        if lost or is_cuda_failure(error, self.device):
            found = Violation("cuda_error", text if lost else f"{PENDING}: {text}", extras=extras)
        elif refusal and isinstance(error, ValueError | TypeError | RuntimeError | NotImplementedError):
            return Outcome((), tokens, path)
        elif extras:
            found = Violation(EXTRAS[self._extra].check, f"raises on a variant of the case: {text}", extras=extras)
        else:
            found = Violation("domain", f"raises inside its claimed domain: {text}")
        return Outcome((found,), tokens, path, fatal=lost)


def describe_error(error: BaseException) -> str:
    """Return an error's type and text, and those of the errors that caused it."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < 4:
        parts.append(f"{type(cause).__name__}: {cause}".strip()[:1500])
        cause = cause.__cause__
    return "\ncaused by ".join(parts)


def is_no_memory(error: Exception) -> bool:
    """Say whether an error says that memory ran out: torch's own, or a library's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower()


def is_context_lost(device: torch.device) -> bool:
    """Say whether nothing can be run on a device any more, as after a sticky CUDA error."""
    if device.type != "cuda":
        return False
    for attempt in range(2):
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=device).item()
        except Exception:  # a launch error that was still pending comes out once
            if attempt:
                return True
        else:
            break
    return False


def is_cuda_failure(error: Exception, device: torch.device) -> bool:
    """Say whether a kernel failed: the context is lost, or a launch error came out. A refused launch shape is none."""
    if device.type != "cuda":
        return False
    return is_context_lost(device) or ("CUDA error" in str(error) and "invalid configuration" not in str(error))


def name_device(device: torch.device) -> str:
    """Return a device's type, of a GPU with its model."""
    return device.type if device.type != "cuda" else f"cuda: {torch.cuda.get_device_name(device)}"


def pick_device(subject: Subject) -> torch.device:
    """Return where a subject runs on this machine."""
    cuda = subject.device == "cuda" or (subject.device == "any" and torch.cuda.is_available())
    return torch.device("cuda") if cuda else torch.device("cpu")


def _tokens(case: Case) -> int:
    shape = case.main.shape
    return shape[0] if shape else 0


def _alike(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.shape == two.shape and one.dtype == two.dtype


def _item(tensor: torch.Tensor, row: int, place: int) -> Any:
    with contextlib.suppress(IndexError):
        return tensor[row].item() if tensor.dim() == 1 else tensor[row][place].item()
    return math.nan


def _explained(violation: Violation, rough: set[int], found: list[Violation]) -> bool:
    """Say whether a wrong result is but the shadow of memory not written, or of runs that differ."""
    if not rough or not found:
        return False
    if violation.check == "align_layout":
        return True
    return bool(violation.rows) and set(violation.rows) <= rough
