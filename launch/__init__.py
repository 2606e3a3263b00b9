"""Launching runs and keeping them alive: standard library only, and files of lapa_jax that are.

Installed as `lapa_jax.launch`: the name `launch` is that of ROS 2.
"""
