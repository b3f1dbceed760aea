"""The pytest plugin: Hypothesis profiles, one GPU a worker, findings in the report.

Imported by every pytest run of an environment that has moeproof, so it imports neither torch nor the harness.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

DEV = Path("/dev")


def gpu_count(folder: Path = DEV) -> int:
    """Return how many GPUs this process may use, without starting CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip()])
    return len([p for p in folder.glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)])


def pin(worker: str, environment: dict[str, str], count: int) -> str | None:
    """Return the value of CUDA_VISIBLE_DEVICES for an xdist worker (``gw0``, ``gw1``, ...), or None to leave it."""
    number = re.fullmatch(r"gw(\d+)", worker)
    if number is None or count < 2:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    devices = [d.strip() for d in visible.split(",") if d.strip()] if visible else [str(i) for i in range(count)]
    return devices[int(number.group(1)) % len(devices)]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini(
        "moeproof_workers_per_gpu",
        "caps `-n auto` at so many xdist workers for each GPU (0: no cap)",
        default="0",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Pin this worker's GPU and register profiles, before any conftest can start CUDA or load a profile."""
    device = pin(os.environ.get("PYTEST_XDIST_WORKER", ""), dict(os.environ), gpu_count())
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def _register_profiles() -> None:
    """Register `dev` and `nightly`; `ci` is Hypothesis's own, which it loads by itself where CI is set."""
    settings.register_profile("dev", max_examples=100, deadline=None)
    # Under CI, Hypothesis derandomises and forgets: a nightly run has to explore and remember.
    settings.register_profile("nightly", max_examples=20_000, deadline=None, derandomize=False)


_register_profiles()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "moeproof: parity test of a kernel against its contract")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Cap `-n auto` by the number of GPUs, where the ini option asks for it."""
    each = int(config.getini("moeproof_workers_per_gpu"))
    count = gpu_count()
    if each < 1 or count < 1:
        return None
    return min(os.cpu_count() or 1, each * count)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach a finding to the report of the test that found it; JUnit shows its identity and folder."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    finding = getattr(error, "finding", None)
    folder = getattr(error, "folder", None)
    if finding is not None and folder is not None:
        # JUnit takes the properties of a test from the report of its teardown, which gets the item's.
        item.user_properties += [("moeproof_finding", finding.identity), ("moeproof_folder", str(folder))]
        report.user_properties = list(item.user_properties)
        report.sections.append(("moeproof finding", (folder / "finding.md").read_text(encoding="utf-8")))
        report.sections.append(("moeproof repro.py", (folder / "repro.py").read_text(encoding="utf-8")))
    return report


def pytest_unconfigure() -> None:
    """End the child processes of parity tests, if any ran."""
    testing = sys.modules.get("moeproof.verify.testing")
    if testing is not None:
        testing.close_children()
