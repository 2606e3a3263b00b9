"""What clients send, as observations: JSON (OpenVLA's, json-numpy's) and msgpack (openpi's).

An array is {"__numpy__": base64, "dtype", "shape"} in json-numpy's form, and {b"__ndarray__": True,
b"data", b"dtype", b"shape"} in that of openpi-client's msgpack. What stands under keys that the
policy does not use may be anything.
"""

import base64
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from lapa_jax.envs.execution import FOLLOWING
from lapa_jax.serving import fields, images
from lapa_jax.serving.limits import Limits, Refused

# What may be sent, so that the reason why it is refused can be told; only uint8 is an image.
_DTYPES = {np.dtype(x).str: np.dtype(x) for x in ("u1", "i1", "i4", "i8", "f2", "f4", "f8", "?")}
_DATA_URI = re.compile(r"data:image/(png|jpeg);base64,")
_TEXT_LENGTH = 2_000  # characters; the model's own limit is in tokens


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a policy is asked about.

    form: "plain"; "array" where the images came as one json-numpy array each, as OpenVLA's client
    sends them, and "arrays" where they are of OpenVLA-OFT's.
    """

    images: np.ndarray  # uint8 (N, H, W, 3) of the policy's size, earliest first
    instruction: str
    picture: bool = False  # whether the predicted frame is asked for
    form: str = "plain"
    encoded: bool = False  # whether the JSON came in a JSON string: OpenVLA's "encoded"
    unnorm_key: str = ""  # of OpenVLA's clients; a policy has one set of units
    state: np.ndarray | None = None  # float32 (S,), where the policy sees the robot's
    # Of real-time chunking: actions float32 (n, A) that the answer is to follow, weights (n,)
    going_on: tuple[np.ndarray, np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Array:
    """An array as it was sent. It is looked at only where it is used."""

    data: Any
    dtype: Any
    shape: Any
    base64: bool = False


@dataclasses.dataclass(frozen=True)
class Reader:
    """Bytes → observations of one policy. Every mistake is a Refused that names it.

    image_keys: the name of each camera's images, in the order of training; (): all images are in
    the one field that has a name of `fields.IMAGES`. state_dim: numbers of the robot's state, 0 of
    a policy that does not see it; state_key: its name; "": one of `fields.STATES`. horizon: actions
    of an answer, 0 of a policy that does not act; control_hz: of them, 0.0: unknown; follows: their
    dimensions, where answers can follow the one before, else 0.
    """

    image_size: tuple[int, int]
    num_frames: int
    num_cameras: int
    image_keys: tuple[str, ...]
    resizing: str
    limits: Limits
    state_dim: int = 0
    state_key: str = ""
    horizon: int = 0
    control_hz: float = 0.0
    follows: int = 0

    def __post_init__(self):
        if self.image_keys and len(self.image_keys) != self.num_cameras:
            raise ValueError(
                f"--image_keys {','.join(self.image_keys)}: the policy sees {self.num_cameras} "
                "cameras, and each has one name"
            )
        if len(set(self.image_keys)) < len(self.image_keys):
            raise ValueError(
                f"--image_keys {','.join(self.image_keys)}: the names are not distinct"
            )
        if self.state_key and not self.state_dim:
            raise ValueError(
                f"--state_key {self.state_key}: the policy was trained without the robot's state"
            )

    @property
    def names(self) -> list[Sequence[str]]:
        """Of each field with images, the names that it may have."""
        return [(name,) for name in self.image_keys] or [fields.IMAGES]

    @property
    def state_names(self) -> Sequence[str]:
        """That the field with the robot's state may have."""
        return (self.state_key,) if self.state_key else fields.STATES

    @property
    def images_each(self) -> int:
        """Of each of these fields."""
        return self.num_frames * self.num_cameras // len(self.names)

    def from_json(self, body: bytes) -> Observation:
        message = _load_json(body)
        encoded = isinstance(message, dict) and list(message) == ["encoded"]
        if encoded:
            if not isinstance(message["encoded"], str):
                raise Refused(422, '"encoded" must be a string that holds JSON')
            message = _load_json(message["encoded"])
        observation = self._observation(message)
        if observation.form != "plain" and observation.picture:
            raise Refused(422, "picture: a json-numpy image is answered by one array, without one")
        return dataclasses.replace(observation, encoded=encoded)

    def from_msgpack(self, data: bytes) -> Observation:
        try:
            message = msgpack.unpackb(
                data, object_pairs_hook=_msgpack_object, strict_map_key=False, max_array_len=100_000
            )
        except msgpack.ExtraData as error:
            raise Refused(400, "the message is msgpack with more after it") from error
        except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as e:
            raise Refused(400, "the message is not msgpack, or nested too deep") from e
        return self._observation(message)

    def _observation(self, message: Any) -> Observation:
        if not isinstance(message, dict):
            raise Refused(422, "the message must be an object with image and instruction")
        picture = message.get("picture", False)
        if not isinstance(picture, bool):
            raise Refused(422, "picture must be true or false")
        try:
            text = fields.find(message, fields.TEXTS, "instruction")
            sent = [fields.find(message, names, "image") for names in self.names]
            own = fields.find(message, self.state_names, "state") if self.state_dim else None
        except fields.NotSent as error:
            raise Refused(422, str(error)) from error
        if self.horizon:
            self._check_horizons(message)
        form = "array" if all(isinstance(one, Array) for one in sent) else "plain"
        if form == "array" and fields.OFT_IMAGE in message:
            form = "arrays"
        unnorm_key = message.get("unnorm_key")
        return Observation(
            self._images(sent),
            _instruction(text),
            picture,
            form,
            unnorm_key=unnorm_key if isinstance(unnorm_key, str) else "",
            state=_state(own, self.state_dim) if self.state_dim else None,
            going_on=self._going_on(message),
        )

    def _check_horizons(self, message: dict) -> None:
        """Refuses a client that acts otherwise than the policy, as far as it says how."""
        given = fields.maybe(message, fields.HORIZON)
        if given is not None and (type(given) is not int or given != self.horizon):
            raise Refused(
                422, f"{fields.HORIZON} {_shown(given)}: this policy's answers hold {self.horizon}"
            )
        given = fields.maybe(message, fields.EXECUTED)
        if given is not None and (type(given) is not int or not 1 <= given <= self.horizon):
            raise Refused(
                422,
                f"{fields.EXECUTED} {_shown(given)}: it must be from 1 to {self.horizon}, the "
                "actions of an answer",
            )
        given = fields.maybe(message, fields.RATE)
        if given is None:
            return
        known = type(given) in (int, float) and 0 < given < 1e9
        own = self.control_hz
        if not known or own and not math.isclose(given, own, rel_tol=0.02):
            why = f"this policy acts at {own:g} Hz" if own else "it must be a positive number"
            raise Refused(422, f"{fields.RATE} {_shown(given)}: {why}")

    def _going_on(self, message: dict) -> tuple[np.ndarray, np.ndarray] | None:
        sent = [fields.maybe(message, name) for name in FOLLOWING]
        if all(one is None for one in sent):
            return None
        if not self.follows:
            raise Refused(
                422,
                f"{FOLLOWING[0]}: answers follow no answer before: that takes a policy whose "
                "head is flow, served with --real_time",
            )
        shapes = (self.horizon, self.follows), (self.horizon,)
        found = []
        for name, one, shape in zip(FOLLOWING, sent, shapes, strict=True):
            if not isinstance(one, Array):
                raise Refused(422, f"{name} must be an array of {list(shape)}")
            found.append(_numbers(_values(one), shape, name))
        return found[0], found[1]

    def _images(self, sent: list[Any]) -> np.ndarray:
        """uint8 (frames * cameras, H, W, 3), of each frame one by every camera."""
        found = []
        for names, value in zip(self.names, sent, strict=True):
            value = _values(value) if isinstance(value, Array) else value
            is_one = value.ndim < 4 if isinstance(value, np.ndarray) else _depth(value) in (0, 3)
            given = [value] if is_one else list(value)
            if len(given) != self.images_each:
                whose = "" if len(names) > 1 else f" in {names[0]}"
                raise Refused(
                    422, f"{len(given)} images{whose}, and the policy takes {self.images_each}"
                )
            made = [images.resize(self._image(x), self.image_size, self.resizing) for x in given]
            found.append(np.stack(made))
        return np.stack(found, axis=1).reshape(-1, *self.image_size, 3)

    def _image(self, sent: Any) -> np.ndarray:
        if isinstance(sent, str | bytes):
            return images.decode(_file(sent), self.limits)
        if isinstance(sent, list):
            sent = _pixels(sent)
        sent = _values(sent) if isinstance(sent, Array) else sent
        if not isinstance(sent, np.ndarray):
            raise Refused(422, f"image is a {type(sent).__name__}: an array, or a JPEG or PNG")
        if sent.dtype != np.uint8:
            raise Refused(422, f"image has dtype {sent.dtype}, not uint8: values from 0 to 255")
        if sent.ndim == 3 and sent.shape[0] == 3 and sent.shape[2] != 3:
            sent = np.moveaxis(sent, 0, -1)  # channels first, as openpi's ALOHA client sends them
        if sent.ndim != 3 or sent.shape[2] != 3:
            raise Refused(422, f"image has shape {list(sent.shape)}, not (height, width, 3)")
        images.check_size(*sent.shape[:2], self.limits.image_pixels)
        return sent


def _state(sent: Any, dim: int) -> np.ndarray:
    """float32 (dim,)."""
    if isinstance(sent, Array):
        values = _values(sent)
    elif isinstance(sent, list):
        if other := [type(x).__name__ for x in sent if type(x) not in (int, float)]:
            raise Refused(422, f"state holds a {other[0]}, not numbers only")
        values = np.array(sent, np.float64) if _fit_float(sent) else np.full(len(sent), np.inf)
    else:
        raise Refused(422, f"state is a {type(sent).__name__}, not an array or a list of numbers")
    if values.shape != (dim,) and values.dtype.kind in "fiu":
        raise Refused(
            422, f"state has shape {list(values.shape)}: the policy was trained with {dim} numbers"
        )
    return _numbers(values, (dim,), "state")


def _numbers(values: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """float32 of this shape, all finite."""
    if values.dtype.kind not in "fiu":
        raise Refused(422, f"{what} has dtype {values.dtype}, not numbers")
    if values.shape != shape:
        raise Refused(422, f"{what} has shape {list(values.shape)}, not {list(shape)}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        raise Refused(422, f"number {place} of the {what} is not finite")
    return values


def _shown(value: Any) -> str:
    """Of what may be anything."""
    return repr(value)[:40] if isinstance(value, int | float | str) else type(value).__name__


def _fit_float(numbers: list) -> bool:
    """Whether no integer is beyond floats."""
    return all(type(x) is float or -(2**1000) < x < 2**1000 for x in numbers)


def _instruction(text: Any) -> str:
    if not isinstance(text, str):
        raise Refused(422, f"instruction must be a string, not {type(text).__name__}")
    if len(text) > _TEXT_LENGTH:
        raise Refused(422, f"instruction of {len(text)} characters: at most {_TEXT_LENGTH}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused(422, "instruction holds half a character: surrogates") from error
    return text


def _load_json(text: bytes | str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_json_object)
    except json.JSONDecodeError as error:
        raise Refused(400, f"the body is not JSON: {error.msg}, character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is not JSON in UTF-8, or nested too deep") from error


def _once(pairs: list[tuple[Any, Any]]) -> dict:
    """An object. Of a key that occurs twice readers take what they like."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in value if names.count(key) > 1)
        raise Refused(422, f"the key {str(twice)[:80]!r} occurs twice")
    return value


def _json_object(pairs: list[tuple[str, Any]]) -> Any:
    value = _once(pairs)
    if "__numpy__" not in value:
        return value
    return Array(value["__numpy__"], value.get("dtype"), value.get("shape"), base64=True)


def _msgpack_object(pairs: list[tuple[Any, Any]]) -> Any:
    value = _once(pairs)
    if b"__npgeneric__" in value:
        return Array(None, "a NumPy scalar", None)
    if b"__ndarray__" not in value:
        return value
    return Array(value.get(b"data"), value.get(b"dtype"), value.get(b"shape"))


def _values(array: Array) -> np.ndarray:
    dtype, shape, data = array.dtype, array.shape, array.data
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        shown = repr(dtype[:40]) if isinstance(dtype, str) else f"a {type(dtype).__name__}"
        raise Refused(422, f"an array of dtype {shown}: known are {list(_DTYPES)}")
    sizes = shape if isinstance(shape, list) and len(shape) <= 4 else [None]
    if not all(type(n) is int and 0 < n < 2**31 for n in sizes):
        raise Refused(422, "an array whose shape is not a list of up to four positive sizes")
    if not isinstance(data, str if array.base64 else bytes):
        raise Refused(422, f"the data of an array must be {'base64' if array.base64 else 'bytes'}")
    data = _base64(data) if array.base64 else data
    if math.prod(sizes) * _DTYPES[dtype].itemsize != len(data):
        raise Refused(422, f"an array of shape {shape} and {dtype} has {len(data)} bytes")
    return np.frombuffer(data, _DTYPES[dtype]).reshape(sizes)


def _file(sent: str | bytes) -> bytes:
    if isinstance(sent, bytes):
        return sent
    return _base64(_DATA_URI.sub("", sent, count=1) if sent.startswith("data:") else sent)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused(
            422, "image is a string but no base64: paths and addresses are not read"
        ) from error


def _depth(value: Any) -> int:
    """Of lists in lists; three are the rows of one image."""
    depth = 0
    while isinstance(value, list) and depth < 5:
        value, depth = value[0] if value else None, depth + 1
    return depth


def _pixels(rows: list) -> np.ndarray:
    """uint8 (H, W, 3) of nested lists of integers."""
    try:
        array = np.array(rows)
    except (ValueError, OverflowError) as error:
        raise Refused(422, "image is lists of different lengths") from error
    if array.dtype.kind not in "iu" or (array.size and (array.min() < 0 or array.max() > 255)):
        raise Refused(422, "image holds other values than integers from 0 to 255")
    return array.astype(np.uint8)
