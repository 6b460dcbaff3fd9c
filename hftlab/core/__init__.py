"""The words everything else is written in: rows, enums, instruments, errors. Imports nothing of hftlab above it."""
