from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.quantizer import Quantizer, Reading

__all__ = ["Quantizer", "QuantizerConfig", "Reading"]
