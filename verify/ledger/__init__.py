"""The ledger: known findings, which fail no run, and which fail one once they are gone."""

from .entries import Entry, Ledger, LedgerError, append, folders_of, read

__all__ = ["Entry", "Ledger", "LedgerError", "append", "folders_of", "read"]
