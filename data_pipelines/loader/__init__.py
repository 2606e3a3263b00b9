"""Batches of any step as a pure function of (seed, step): the face of this room."""

from data_pipelines.loader.bad_examples import BadExamplesError
from data_pipelines.loader.loader import FingerprintError, Loader, Plan, check_fingerprint
from data_pipelines.loader.mixture import open_mixture
from data_pipelines.loader.settings import DataSettings

__all__ = [
    "BadExamplesError",
    "DataSettings",
    "FingerprintError",
    "Loader",
    "Plan",
    "check_fingerprint",
    "open_mixture",
]
