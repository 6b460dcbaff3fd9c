"""Venues: one room each, the same files everywhere, no sockets."""
