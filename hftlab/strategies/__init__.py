"""Example strategies: short, importable, each the subject of a notebook. Starting points, not advice."""
