"""Neural networks: Flax NNX inside, pure functions over plain pytrees at the boundary."""
