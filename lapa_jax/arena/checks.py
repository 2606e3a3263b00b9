"""Whether a server's policy fits an environment, and how it is asked, before the first episode."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lapa_jax.arena.client import Policy
from lapa_jax.arena.worker import Setup, observation
from lapa_jax.envs.env import EnvSpec
from lapa_jax.envs.execution import FOLLOWING, Execution, check_rate

_UNITS = {
    "m": ("m", "metre", "metres", "meter", "meters"),
    "cm": ("cm", "centimetre", "centimetres", "centimeter", "centimeters"),
    "mm": ("mm", "millimetre", "millimetres", "millimeter", "millimeters"),
    "rad": ("rad", "radian", "radians"),
    "deg": ("deg", "degree", "degrees"),
    "inch": ("inch", "inches"),
    "foot": ("ft", "foot", "feet"),
}
_SIDE = 4096  # pixels, as of --image_size
_NAMES = ("observation/image", "observation/wrist_image")  # openpi's LIBERO client's


def cameras(spec: EnvSpec, metadata: Mapping[str, Any], wanted: Sequence[str]) -> tuple[str, ...]:
    """The views that are sent: `wanted`, or as many of the spec's as the policy sees."""
    if unknown := [name for name in wanted if name not in spec.views]:
        raise ValueError(f"--cameras: {spec.name} has no {unknown}; it has {', '.join(spec.views)}")
    frames, images = _said(metadata, "num_frames", int), _said(metadata, "images", int)
    images = images if images and images > 0 else None  # it means something else by that name
    if frames not in (None, 1):
        raise ValueError(
            f"--server: its policy sees {frames} frames of the past, and here it is sent the "
            "current one: serve one that was trained with data.num_frames=1"
        )
    found = tuple(wanted) or spec.cameras[:images]
    if images is not None and len(found) != images:
        raise ValueError(
            f"--server: its policy sees {images} cameras, {spec.name} sends {len(found)} "
            f"({', '.join(found)}): --cameras names them, of {', '.join(spec.views)}"
        )
    return found


def image_keys(
    metadata: Mapping[str, Any], found: Sequence[str], wanted: Sequence[str]
) -> tuple[str, ...]:
    """The fields of an observation that images are sent in: one each, or one for all."""
    if wanted:
        if len(wanted) not in (1, len(found)) or len(set(wanted)) != len(wanted):
            raise ValueError(f"--image_keys {','.join(wanted)}: {len(found)} cameras, a name each")
        return tuple(wanted)
    told = _said(_said(metadata, "observation", Mapping) or {}, "images", list)
    if told and all(isinstance(names, list) and names for names in told):
        return tuple(next((n for n in names if n in _NAMES), names[0]) for names in told)
    if len(found) > len(_NAMES):
        raise ValueError(
            f"--image_keys: the server does not say how the images of {', '.join(found)} are named"
        )
    return _NAMES[: len(found)]


def state_key(metadata: Mapping[str, Any], wanted: str) -> str:
    """The field of an observation that what the robot knows of itself is sent in."""
    told = _said(_of_state(metadata), "names", list) or ["observation/state"]
    return wanted or str(told[0])


def _of_state(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the server says of the state that its policy sees."""
    return _said(_said(metadata, "observation", Mapping) or {}, "state", Mapping) or {}


def image_size(
    spec: EnvSpec, metadata: Mapping[str, Any], wanted: Sequence[int]
) -> tuple[int, int]:
    """Height and width of what is rendered."""
    theirs = tuple(_said(metadata, "image_size", list) or ())
    theirs = theirs if len(theirs) == 2 and all(type(n) is int and n > 0 for n in theirs) else ()
    if max(theirs, default=0) > _SIDE and not wanted:
        raise ValueError(
            f"--server: its policy takes images of {theirs[0]} x {theirs[1]} pixels, and at most "
            f"{_SIDE} a side are drawn: --image_size is another size"
        )
    if len(wanted) > 2:
        raise ValueError(f"--image_size {','.join(map(str, wanted))}: a side, or height,width")
    size = tuple(wanted) * 2 if len(wanted) == 1 else tuple(wanted)
    if not size:
        return theirs or spec.image_size
    if theirs and metadata.get("resizing") == "none" and size != theirs:
        raise ValueError(
            f"--image_size {size[0]},{size[1]}: the policy takes {theirs[0]},{theirs[1]} and its "
            "server resizes nothing: leave the flag out, or serve with --resizing crop"
        )
    return size


def fits(spec: EnvSpec, metadata: Mapping[str, Any]) -> None:
    """ValueError where the server says that its policy acts otherwise than the environment."""
    if metadata.get("policy") == "latent":
        raise ValueError(
            "--server: its policy predicts latents, no actions: serve one that was fine-tuned on "
            "actions"
        )
    action = _said(metadata, "action", Mapping) or {}
    dim, names = _said(action, "dim", int), _said(action, "names", list)
    hint = f"`lapa evaluate --benchmark {spec.name} --list` tells those of {spec.name}"
    if dim not in (None, spec.action_dim):
        raise ValueError(
            f"--server: its policy's actions have {dim} dimensions, those of {spec.name} "
            f"{spec.action_dim} ({', '.join(spec.actions)}): serve a policy of this environment"
        )
    if names and [str(n).lower() for n in names] != [n.lower() for n in spec.actions]:
        raise ValueError(
            f"--server: its policy's actions are {', '.join(map(str, names))}, those of "
            f"{spec.name} {', '.join(spec.actions)}: {hint}"
        )
    units = _said(action, "units", list) or []
    units = units if len(units) == spec.action_dim else spec.action_units
    for name, ours, theirs in zip(spec.actions, spec.action_units, units, strict=True):
        known = {_unit(ours), _unit(str(theirs))} - {None}
        if len(known) > 1:
            raise ValueError(
                f"--server: {name} of its policy is in {theirs}, that of {spec.name} in {ours}: "
                f"serve a policy that was trained on actions of this unit; {hint}"
            )
    own = _said(_of_state(metadata), "dim", int)
    if own not in (None, len(spec.state)):
        raise ValueError(
            f"--server: its policy sees states of {own} numbers, {spec.name} has "
            f"{len(spec.state)} ({', '.join(spec.state) or 'none'}): serve a policy that was "
            "trained with states of this environment"
        )
    rate = _said(metadata, "control_hz", int | float)
    check_rate(rate, spec.control_hz, "--server: its policy", spec.name)


def execution(metadata: Mapping[str, Any], how: Execution) -> Execution:
    """How answers are acted on: as many actions as the server says, 1 where it says nothing.
    ValueError where the chunks that it announces are too short."""
    found = how.of(_said(metadata, "execution_horizon", int) or 1)
    if horizon := _said(metadata, "prediction_horizon", int):
        try:
            found.check(horizon)
        except ValueError as error:
            raise ValueError(f"--server: its policy has another horizon: {error}") from error
    return found


def follows(metadata: Mapping[str, Any], how: Execution) -> bool:
    """Whether the policy is guided by the answer before, where one goes on."""
    optional = _said(_said(metadata, "observation", Mapping) or {}, "optional", list) or []
    return bool(how.delay) and set(FOLLOWING) <= set(map(str, optional))


def _said(metadata: Mapping[str, Any], name: str, kind: Any) -> Any:
    """None where the server does not say it, or means something else by that name."""
    found = metadata.get(name)
    return found if isinstance(found, kind) and not isinstance(found, bool) else None


def _unit(text: str) -> str | None:
    """Of what is said of a unit, the unit, where it is one of those that are mistaken."""
    form = r"\s*([\d.]+ )?([a-z]*)(\s*/\s*s(?:ec(?:ond)?)?\b|\s+per\s+second\b)?"
    number, first, speed = re.match(form, text.lower()).groups("")
    found = next((number + unit for unit, names in _UNITS.items() if first in names), None)
    return f"{found}/s" if found and speed else found


def fields(spec: EnvSpec, how: Setup) -> None:
    """ValueError where two things would be sent by one name, and one of them be lost."""
    names = [*how.image_keys, *([how.state_key] if spec.state else []), how.prompt_key]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{', '.join(map(repr, twice))} is the name of two fields of what is sent: "
            "--image_keys, --state_key and --prompt_key must be different"
        )


def trial(spec: EnvSpec, policy: Policy, how: Setup) -> None:
    """Asks about a black image, twice: the first answer may wait for a compilation. Raises
    ServerError, or ValueError where an answer holds fewer actions than are needed."""
    images = [np.zeros((*how.image_size, 3), np.uint8)] * len(how.cameras)
    own = np.zeros(len(spec.state), np.float32)
    sent = observation(how, images, own, spec.tasks[0].replace("_", " "))
    for seconds in (how.start_seconds, how.answer_seconds):
        policy.answer_seconds = seconds
        found = policy.ask(sent, spec.action_dim)
    try:
        Execution(**how.execution).check(len(found))
    except ValueError as error:
        raise ValueError(f"an answer of {policy.url} is too short: {error}") from error
