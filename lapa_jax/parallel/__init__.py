"""Distributed start-up, mesh and sharding rules."""
