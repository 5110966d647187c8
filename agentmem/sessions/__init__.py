"""Sessions: who owns what, one writer at a time, and the ledger that is the truth."""
