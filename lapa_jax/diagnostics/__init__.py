"""What a latent action is worth: pure functions on NumPy arrays that return JSON-able numbers.

`codebook` (is the code alive), `reconstruction` (does it carry the change), `probes` (does it
carry the action), `statistics` (how sure are we). No models, stages or TensorFlow are imported.
"""
