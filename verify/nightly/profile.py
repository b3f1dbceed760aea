"""A pytest plugin for test files that a nightly run takes in: its Hypothesis databases, its folder for findings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moeproof.verify.worker import die_with_parent

from .examples import chain, load_profile, shared_of
from .layout import OUT_VARIABLE, state_file
from .store import Store


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Load the `nightly` profile, after Hypothesis's own plugin has had its say."""
    from moeproof.verify import testing

    die_with_parent()
    out = Path(os.environ[OUT_VARIABLE])
    store = Store(state_file(out))
    examples = shared_of(store.plan())
    store.close()
    load_profile(chain(out / "examples", examples, lambda text: print(text, file=sys.stderr)))
    testing.OUT = out
