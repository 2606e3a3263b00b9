"""Values of a loader column as tokens, and back. A new codec is a file here and a line in
`CODECS`."""

import inspect
import json

from lapa_jax.policy.codecs.bins import Bins
from lapa_jax.policy.codecs.clusters import Clusters
from lapa_jax.policy.codecs.codec import ActionCodec, Codec
from lapa_jax.policy.codecs.latent import Codes
from lapa_jax.policy.codecs.uniform import Uniform

__all__ = ["CODECS", "ActionCodec", "Bins", "Clusters", "Codec", "Codes", "Uniform", "from_json"]

CODECS: dict[str, type[Codec]] = {kind.kind: kind for kind in (Codes, Bins, Uniform, Clusters)}


def from_json(data: bytes) -> Codec:
    """The codec of what its `to_json` gave."""
    values = json.loads(data)
    # Earlier code wrote no kind, and had two.
    kind = values.pop("kind", "bins" if "edges" in values else "clusters")
    if kind not in CODECS:
        raise ValueError(f"a codec of kind {kind!r}: this code knows {sorted(CODECS)}")
    # Beside them `lapa data stats --json` tells where they are from.
    names = inspect.signature(CODECS[kind]).parameters
    return CODECS[kind](**{name: values[name] for name in names if name in values})
