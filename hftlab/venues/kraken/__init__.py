"""Kraken spot without sockets: bytes in, rows out, and back. `feeds` and `brokers` give it a connection."""
