"""Benchmarks as a product: what hftlab does on this machine, beside its peers, in one run."""
