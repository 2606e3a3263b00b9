"""What clients send, as observations: JSON (OpenVLA's, json-numpy's) and msgpack (openpi's).

An array is {"__numpy__": base64, "dtype", "shape"} in json-numpy's form, and {b"__ndarray__": True,
b"data", b"dtype", b"shape"} in that of openpi-client's msgpack.
"""

import base64
import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import numpy as np

from lapa_jax.serving import images
from lapa_jax.serving.limits import Limits, Refused

IMAGE_KEYS, TEXT_KEYS = ("image", "observation/image"), ("instruction", "prompt")
# What may be sent, so that the reason why it is refused can be told; only uint8 is an image.
_DTYPES = {np.dtype(x).str: np.dtype(x) for x in ("u1", "i1", "i4", "i8", "f2", "f4", "f8", "?")}
_DATA_URI = re.compile(r"data:image/(png|jpeg);base64,")
_TEXT_LENGTH = 2_000  # characters; the model's own limit is in tokens


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a policy is asked about."""

    images: np.ndarray  # uint8 (N, H, W, 3) of the policy's size, earliest first
    instruction: str
    picture: bool = False  # whether the predicted frame is asked for
    as_numpy: bool = False  # whether the image came as one array


class Reader:
    """Bytes → observations of one policy. Every mistake is a Refused that names it; methods may be
    called from any thread."""

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        num_images: int,
        resizing: str,
        limits: Limits,
        check_text: Callable[[str], Any],
        unnorm_keys: Sequence[str],
    ):
        self.image_size, self.num_images = tuple(image_size), num_images
        self.resizing, self.limits = resizing, limits
        self.check_text, self.unnorm_keys = check_text, tuple(unnorm_keys)

    def from_json(self, body: bytes) -> tuple[Observation, bool]:
        """(observation, whether the JSON came in a JSON string: OpenVLA's "encoded")."""
        message = _load_json(body)
        encoded = isinstance(message, dict) and list(message) == ["encoded"]
        if encoded:
            if not isinstance(message["encoded"], str):
                raise Refused(422, '"encoded" must be a string that holds JSON')
            message = _load_json(message["encoded"])
        observation = self._observation(message)
        if observation.as_numpy and observation.picture:
            raise Refused(422, "picture: a json-numpy image is answered by one array, without one")
        return observation, encoded

    def from_msgpack(self, data: bytes) -> Observation:
        try:
            message = msgpack.unpackb(data, object_hook=_msgpack_array, max_array_len=100_000)
        except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as e:
            raise Refused(400, f"the message is not msgpack: {str(e)[:100]}") from e
        return self._observation(message)

    def _observation(self, message: Any) -> Observation:
        if not isinstance(message, dict):
            raise Refused(422, "the message must be an object with image and instruction")
        known = {*IMAGE_KEYS, *TEXT_KEYS, "unnorm_key", "picture"}
        unknown = [str(key)[:40] for key in message if key not in known]
        if unknown:
            raise Refused(422, f"unknown keys {unknown[:5]}: this policy takes {sorted(known)}")
        picture = message.get("picture", False)
        if not isinstance(picture, bool):
            raise Refused(422, "picture must be true or false")
        self._check_unnorm_key(message.get("unnorm_key"))
        instruction = self._instruction(_one_of(message, TEXT_KEYS))
        sent = _one_of(message, IMAGE_KEYS)
        as_numpy = isinstance(sent, np.ndarray)
        return Observation(self._images(sent), instruction, picture, as_numpy)

    def _check_unnorm_key(self, key: Any) -> None:
        if key is not None and not (isinstance(key, str) and key in self.unnorm_keys):
            raise Refused(
                422,
                f"unnorm_key {str(key)[:40]!r} is not one of {list(self.unnorm_keys)}: leave it "
                "out, this policy has one set of action units",
            )

    def _instruction(self, text: Any) -> str:
        if not isinstance(text, str):
            raise Refused(422, f"instruction must be a string, not {type(text).__name__}")
        if len(text) > _TEXT_LENGTH:
            raise Refused(422, f"instruction of {len(text)} characters: at most {_TEXT_LENGTH}")
        try:
            text.encode()
            self.check_text(text)
        except ValueError as error:
            raise Refused(422, str(error)[:300]) from error
        return text

    def _images(self, sent: Any) -> np.ndarray:
        is_one = sent.ndim < 4 if isinstance(sent, np.ndarray) else _depth(sent) in (0, 3)
        given = [sent] if is_one else list(sent)
        if len(given) != self.num_images:
            raise Refused(422, f"{len(given)} images, and the policy takes {self.num_images}")
        made = [images.resize(self._image(one), self.image_size, self.resizing) for one in given]
        return np.stack(made)

    def _image(self, sent: Any) -> np.ndarray:
        if isinstance(sent, str | bytes):
            return images.decode(_file(sent), self.limits.image_pixels)
        if isinstance(sent, list):
            sent = _pixels(sent)
        if not isinstance(sent, np.ndarray):
            raise Refused(422, f"image is a {type(sent).__name__}: an array, or a JPEG or PNG")
        if sent.dtype != np.uint8:
            raise Refused(422, f"image has dtype {sent.dtype}, not uint8: values from 0 to 255")
        if sent.ndim != 3 or sent.shape[2] != 3:
            raise Refused(422, f"image has shape {list(sent.shape)}, not (height, width, 3)")
        images.check_size(*sent.shape[:2], self.limits.image_pixels)
        return sent


def _load_json(text: bytes | str) -> Any:
    try:
        return json.loads(text, object_hook=_json_array)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {str(error)[:100]}") from error


def _json_array(value: dict) -> Any:
    if "__numpy__" not in value:
        return value
    data = value["__numpy__"]
    if not isinstance(data, str):
        raise Refused(422, "__numpy__ must be base64")
    return _array(_base64(data), value.get("dtype"), value.get("shape"))


def _msgpack_array(value: dict) -> Any:
    if b"__npgeneric__" in value:
        raise Refused(422, "a NumPy scalar: image is an array, the rest are plain values")
    if b"__ndarray__" not in value:
        return value
    data = value.get(b"data")
    if not isinstance(data, bytes):
        raise Refused(422, "the data of an array must be bytes")
    return _array(data, value.get(b"dtype"), value.get(b"shape"))


def _array(data: bytes, dtype: Any, shape: Any) -> np.ndarray:
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise Refused(422, f"an array of dtype {str(dtype)[:40]!r}: known are {list(_DTYPES)}")
    sizes = shape if isinstance(shape, list) and len(shape) <= 4 else [None]
    if not all(type(n) is int and 0 < n < 2**31 for n in sizes):
        raise Refused(422, f"an array of shape {str(shape)[:60]}: up to four positive sizes")
    if math.prod(sizes) * _DTYPES[dtype].itemsize != len(data):
        raise Refused(422, f"an array of shape {shape} and {dtype} has {len(data)} bytes")
    return np.frombuffer(data, _DTYPES[dtype]).reshape(sizes)


def _one_of(message: dict, keys: Sequence[str]) -> Any:
    given = [key for key in keys if key in message]
    if len(given) != 1:
        raise Refused(422, f"exactly one of {list(keys)} must be given, not {given}")
    return message[given[0]]


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
