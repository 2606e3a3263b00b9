"""Reading, writing, converting and checking RLDS corpora; imports nothing of lapa_jax."""
