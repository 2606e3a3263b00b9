"""Closed-loop environments: the protocol, the JAX-native tabletop, and jitted rollouts."""
