"""The loader beside its decoders alone and the pipelines of others."""
