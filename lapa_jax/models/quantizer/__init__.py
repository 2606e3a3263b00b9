from lapa_jax.models.quantizer.config import QuantizerConfig, quantizer_flops
from lapa_jax.models.quantizer.model import Quantizer

__all__ = ["Quantizer", "QuantizerConfig", "quantizer_flops"]
