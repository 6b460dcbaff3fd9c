"""Coinbase: the Exchange and Advanced Trade APIs, spot."""
