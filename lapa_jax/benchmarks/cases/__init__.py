"""Cases of `lapa bench compare`: files that processes of their own read by their paths.

They also run in earlier builds, whose modules lay elsewhere, and beside the code of others.
"""
