"""What /metadata and the first WebSocket message say of the policy that is served."""

from collections.abc import Sequence
from typing import Any

from lapa_jax.envs.execution import FOLLOWING
from lapa_jax.runs.loaded import LoadedPolicy, LoadedQuantizer
from lapa_jax.serving import fields
from lapa_jax.serving.messages import Reader


def metadata(
    policy: LoadedPolicy,
    reader: Reader,
    *,
    action_names: Sequence[str] = (),
    action_units: Sequence[str] = (),
    control_hz: float = 0.0,
    quantizer: LoadedQuantizer | None = None,
) -> dict[str, Any]:
    """Plain values, for JSON and msgpack. What the run does not record is None. control_hz: of
    actions; 0: that of the run's data."""
    stage, limits = policy.stage, reader.limits
    found = {
        "policy": stage.head.modality,
        "image_size": list(policy.image_size),  # height, width
        "images": stage.num_images,  # of an observation, earliest first
        "num_frames": policy.config.data.num_frames,
        "history_seconds": policy.config.data.history_seconds,  # between them
        "observation": {
            # of each field its names: one of them is sent, and holds so many images
            "images": [list(names) for names in reader.names],
            "images_each": reader.images_each,
            "instruction": list(fields.TEXTS),
            # the robot's, in the units of training; None: it is not looked at
            "state": stage.state.describe(list(reader.state_names)) if stage.state else None,
            "optional": [  # other keys are not looked at
                "picture",
                *((fields.HORIZON, fields.EXECUTED, fields.RATE) if reader.horizon else ()),
                *(FOLLOWING if reader.follows else ()),
            ],
        },
        "resizing": reader.resizing,
        "text_length": policy.config.model.text_length,  # tokens
        "unnorm_keys": unnorm_keys(policy),
        "chunk": stage.head.horizon,  # actions that an answer holds: the prediction horizon
        "prediction_horizon": stage.head.horizon,
        "execution_horizon": policy.execution_horizon,  # of them, before the next question
        "control_hz": control_hz or policy.control_hz or None,
        "pictures": quantizer is not None,
        "limits": {
            "request_bytes": limits.request_bytes,
            "image_pixels": limits.image_pixels,
            "image_scans": limits.image_scans,
            "requests_per_second": limits.requests_per_second,
        },
        "checkpoint": {
            "step": policy.step,
            "params_hash": policy.params_hash,
            "stage": policy.config.stage,
            "weights": policy.weights,  # what decodes
            "provenance": policy.provenance,
        },
    }
    described = stage.head.describe()
    if "dim" in described:
        described |= _named(described["dim"], action_names, action_units)
    elif action_names or action_units:
        raise ValueError("--action_names and --action_units are of policies that act")
    return found | {stage.head.modality: described}


def needed(reader: Reader) -> str:
    """One line: what an observation must hold."""
    own = [reader.state_names] if reader.state_dim else []
    needed = [" or ".join(names) for names in (*reader.names, fields.TEXTS, *own)]
    return "; ".join(needed) + "; other keys are not looked at"


def unnorm_keys(policy: LoadedPolicy) -> list[str]:
    """The corpora that the policy was trained on. All have the same action units."""
    return sorted(policy.config.data.corpora)


def _named(dim: int, names: Sequence[str], units: Sequence[str]) -> dict[str, Any]:
    for flag, given in (("action_names", names), ("action_units", units)):
        if given and len(given) != dim:
            raise ValueError(f"--{flag} gives {len(given)}, an action has {dim} dimensions")
    return {"names": list(names) or None, "units": list(units) or None}
