"""Converters: foreign recordings -> standard RLDS corpora; one module per source.

Each has a function convert_*(source, out, ...) that returns a report. Work is cut into shards in a
deterministic way; `staging.py` keeps finished shards, so a stopped conversion goes on where it was.
"""
