"""What a latent action is worth: pure functions on NumPy arrays that return JSON-able numbers.

`codebook` (is the code alive), `reconstruction` (does it carry the change), `probes` and
`label_efficiency` (does it carry the action), `code_probes` (does the action tell the code),
`leakage` (does it carry the scene), `controls` (is it better than codes nobody learnt), `content`
(the last four in one report), `embodiment` (is it the same in another view), `algebra` (does it add
up), `again` and `cuts` (does it act, or draw a picture), `information` and `displacement` (with no
probe), `window_curve` (at which distance of frames), `token_controls` (is a policy better than a
guess), `rollouts` (are imagined videos true), `statistics` (how sure are we). No models, stages or
TensorFlow are imported.
"""
