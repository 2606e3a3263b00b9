from lapa_jax.latent.config import QuantizerConfig, quantizer_flops
from lapa_jax.latent.quantizer import Quantizer, Reading

__all__ = ["Quantizer", "QuantizerConfig", "Reading", "quantizer_flops"]
