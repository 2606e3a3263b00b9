"""Latent action models of others as they are: other architectures of the stage "quantizer".

Each computes what the public original does, to the last quirk that weights depend on, and offers
what `Quantizer` does (base.py), so that labels, measures, exports and training take it. A new one
is a file here with its config and its module, and a line of `ARCHITECTURES` in latent/__init__.py.
"""
