"""A policy behind WebSocket and REST: `messages` and `images` read, `engine` computes, `app`
answers.

Nothing that a client sends is trusted: its size, types and rate are bounded, and none of it names a
file or an address.
"""
