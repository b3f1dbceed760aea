"""What a test module imports: `subject`, `parity`, and the domains."""

from moeproof.strategies.domain import AlignDomain, AppendDomain, GateDomain
from moeproof.verify.testing import FAILURES, ParityError, parity, subject

__all__ = ["FAILURES", "AlignDomain", "AppendDomain", "GateDomain", "ParityError", "parity", "subject"]
