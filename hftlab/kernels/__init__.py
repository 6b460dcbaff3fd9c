"""Compiled kernels: pure functions on arrays and addresses; no I/O, clock, log or Python object inside."""
