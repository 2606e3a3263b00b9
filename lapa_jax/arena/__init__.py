"""Policies behind a server in environments that run elsewhere: each in a process of its own, which
may have another Python (`worker`), and asks the policy by openpi's protocol (`client`).

`worker` and `client` load without JAX.
"""
