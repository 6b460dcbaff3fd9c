"""Feeds: connections to venues that live, break and come back."""
