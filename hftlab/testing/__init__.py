"""Checks that a user can run on code of their own: mutated input for decoders."""
