"""Converters: foreign recordings -> standard RLDS corpora; one module per source.

Each has `Options`, a function convert_*(options) that returns a report, and a `conversion.Source`
that yields episodes from units of work. `conversion.py` makes shards of them; `staging.py` keeps
finished shards, so a stopped conversion goes on where it was.
"""
