from lapa_jax.models.quantizer.config import QuantizerConfig, quantizer_flops
from lapa_jax.models.quantizer.model import Quantizer, Reading

__all__ = ["Quantizer", "QuantizerConfig", "Reading", "quantizer_flops"]
