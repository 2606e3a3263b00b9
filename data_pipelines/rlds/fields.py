"""Images, numbers and texts of RLDS episodes, under whatever keys a data set keeps them.

Selections are those of selection.py. A path is below `steps/`, else below the root of the episode,
else below `episode_metadata/`; that of an image is first looked for below `steps/observation/`.
What an episode has once counts for each of its steps. `features.json` tells shapes and types where
the records do not (declared.py). A text may also be the bytes of UTF-8 as integers, filled up with
zeros (Language Table).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.rlds import schema, selection, tfrecord
from data_pipelines.rlds.declared import NOTHING, Declaration, Declared
from data_pipelines.rlds.selection import FieldError, check_finite, parts

__all__ = ["FieldError", "check_finite", "parts"]

Features = Mapping[str, tfrecord.Feature]

STEPS = "steps/"
STATE = schema.STATE.removeprefix(STEPS)
_BASES = (STEPS, "", schema.METADATA)
_IMAGE_BASES = (schema.OBSERVATION, STEPS, "")
FLAT, _ROWS = "/ragged_flat_values", "/ragged_row_lengths_0"
# ---------------------------------------------------------------- finding


def find(features: Features, path: str, bases: tuple[str, ...] = _BASES) -> str | None:
    """The key of a field, None where there is none."""
    keys = (base + path for base in bases)
    return next((key for key in keys if key in features or key + FLAT in features), None)


def _holds(features: Features, key: str) -> bool:
    feature = features.get(key) or features.get(key + FLAT)
    return feature is not None and feature.kind != tfrecord.EMPTY


# ---------------------------------------------------------------- numbers


def actions(
    features: Features,
    record: tfrecord.Buffer,
    steps: int,
    action_key: str,
    of: Declaration = NOTHING,
) -> np.ndarray | None:
    """As `numbers`, but where the last step says `is_last` RLDS gives its action no meaning: there
    it may be anything, and is NaN where float32 does not hold it."""
    free = ends_by_flag(features, record, steps)
    return numbers(features, record, steps, action_key, of, free=free)


def check_actions(features: Features, record: tfrecord.Buffer, values: np.ndarray) -> None:
    """Raises FieldError for an action that has a meaning and is not finite."""
    end = len(values) - ends_by_flag(features, record, len(values))
    check_finite(values[:end], "action")


def ends_by_flag(features: Features, record: tfrecord.Buffer, steps: int) -> bool:
    """Whether the last step says that it is one (`is_last`)."""
    feature = features.get(schema.IS_LAST)
    flags = feature.ints(record) if feature and feature.kind == tfrecord.INT64 else ()
    return len(flags) == steps and bool(flags[-1])


def numbers(
    features: Features,
    record: tfrecord.Buffer,
    steps: int,
    numbers_key: str,
    of: Declaration = NOTHING,
    *,
    free: bool = False,
) -> np.ndarray | None:
    """float32 (steps, A) of a selection, None where there is nothing of it.

    Integers and flags are widened; one that float32 does not hold exactly is an error. free: those
    of the last step may be anything.
    """
    wanted = parts(numbers_key)
    keys = {part.path: find(features, part.path) for part in wanted}
    missing = [path for path, key in keys.items() if not (key and _holds(features, key))]
    if len(missing) == len(keys):
        return None
    if missing:
        there = [path for path in keys if path not in missing]
        raise FieldError(f"it has {there}, but not {missing}")
    columns = []
    for path, stop in wanted:
        values = _numbers(features, record, steps, keys[path], of, free)
        if stop and values.shape[1] < stop:
            raise FieldError(
                f"{keys[path]} has {values.shape[1]} values a step, not the {stop} asked for"
            )
        columns.append(values[:, :stop])
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def _numbers(
    features: Features,
    record: tfrecord.Buffer,
    steps: int,
    key: str,
    of: Declaration,
    free: bool,
) -> np.ndarray:
    rows = 1 if key.startswith(schema.METADATA) else steps
    free = free and rows > 1
    if key in features:
        values = _flat(features[key], record, key, of.get(key))
    else:
        values = _flat(features[key + FLAT], record, key, of.get(key))
        *sizes, last = _row_sizes(features, record, key, rows)
        if len({*sizes} | ({last} if not free else set())) > 1:
            raise FieldError(
                f"{key} has {min(*sizes, last)} to {max(*sizes, last)} values a step, not as many"
            )
        if free and last != sizes[0]:  # whatever it is: one that float32 does not hold
            each = len(values) // (sum(sizes) + last)  # where these are vectors
            end = [np.nan] * (sizes[0] * each)
            values = np.append(values[: len(values) - last * each], end)
    if values.size == 0 or values.size % rows:
        raise FieldError(f"{steps} images but {values.size} values of {key}")
    values = values.reshape(rows, -1)
    try:
        found = selection.as_float32(values, key)
    except FieldError:
        if not free:
            raise
        end = np.full_like(values[:1], np.nan, np.float32)
        found = np.concatenate([selection.as_float32(values[:-1], key), end])
    return np.repeat(found, steps, axis=0) if rows < steps else found


def _flat(
    feature: tfrecord.Feature, record: tfrecord.Buffer, key: str, of: Declared | None
) -> np.ndarray:
    if feature.kind == tfrecord.INT64:
        values = feature.ints(record)
        return values.view(np.uint64) if of and of.dtype == "uint64" else values
    if feature.kind == tfrecord.FLOAT:
        return feature.floats(record)
    if of and of.encoding != "none":
        return np.concatenate([_tensor(item, key, of) for item in feature.byte_items(record)])
    raise FieldError(f"{key} holds {feature.kind}, not numbers")


def _tensor(item: bytes, key: str, of: Declared) -> np.ndarray:
    """The flat numbers of a tensor that is stored as bytes."""
    try:
        raw = zlib.decompress(item) if of.encoding == "zlib" else item
        if of.dtype == "bfloat16":  # the upper half of a float32
            return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(raw, of.dtype)
    except (zlib.error, TypeError, ValueError) as error:
        raise FieldError(f"{key} is not {of} as {of.encoding}: {error}") from error


def _row_sizes(features: Features, record: tfrecord.Buffer, key: str, rows: int) -> list[int]:
    """How many values of a ragged field each step has."""
    if key + "/ragged_row_lengths_1" in features:
        raise FieldError(f"{key} is a sequence of sequences")
    feature = features.get(key + _ROWS)
    sizes = feature.ints(record).tolist() if feature and feature.kind == tfrecord.INT64 else []
    if len(sizes) != rows:
        raise FieldError(f"{rows} images but {len(sizes)} values of {key}")
    return sizes


# ---------------------------------------------------------------- texts


def texts(
    features: Features,
    record: tfrecord.Buffer,
    steps: int,
    text_key: str,
    of: Declaration = NOTHING,
) -> list[str]:
    """The text of each step, or one for all, without blanks around; [] where there is none. Of
    several, in one field or in several selected ones, it is the first that is not blank."""
    found = []
    for path in selection.paths(text_key):
        key = find(features, path)
        if key and _holds(features, key):
            found.append(_texts(features, record, steps, key, of.get(key)))
    if not found:
        return []
    count = max(map(len, found))
    full = [rows * (count if len(rows) == 1 else 1) for rows in found]
    return [next(filter(None, (one[i] for one in full)), "") for i in range(count)]


def _texts(
    features: Features, record: tfrecord.Buffer, steps: int, key: str, of: Declared | None
) -> list[str]:
    once = key.startswith(schema.METADATA)
    rows = 1 if once else steps
    if key not in features:
        sizes = _row_sizes(features, record, key, rows)
        feature = features[key + FLAT]
    else:
        feature, sizes = features[key], None
    if feature.kind == tfrecord.INT64:
        items = [[item] for item in _code_rows(feature.ints(record), rows, sizes, key)]
    elif feature.kind != tfrecord.BYTES:
        raise FieldError(f"{key} holds {feature.kind}, not text")
    else:
        items = feature.byte_items(record)
        if of and of.encoding == "zlib":
            items = [_tensor(item, key, of).tobytes() for item in items]
        if sizes is None:
            several = math.prod(of.shape) if of and of.dtype == "text" and of.shape else 1
            several = len(items) if once else max(several, 1)
            if len(items) not in (several, rows * several):
                raise FieldError(f"{steps} images but {len(items)} values of {key}")
            sizes = [several] * (len(items) // several if several else 0)
        ends = np.cumsum(sizes).tolist()
        items = [items[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    try:
        decoded = {item: _text(item) for row in items for item in row}
    except UnicodeDecodeError as error:
        raise FieldError(f"{key} is not UTF-8: {error}") from error
    return [next(filter(None, (decoded[item] for item in row)), "") for row in items]


def _text(item: bytes) -> str:
    """Up to the zeros that fill it up."""
    return item.split(b"\0", 1)[0].decode().strip()


def _code_rows(codes: np.ndarray, rows: int, sizes: list[int] | None, key: str) -> list[bytes]:
    if sizes is None:
        if not codes.size or codes.size % rows or codes.size == rows:
            raise FieldError(f"{key} holds int64, not text ({codes.size} numbers in {rows} steps)")
        sizes = [codes.size // rows] * rows
    if codes.size and (codes.min() < 0 or codes.max() > 255):
        raise FieldError(f"{key} holds {codes.max()}, not the bytes of a text")
    ends = np.cumsum(sizes).tolist()
    raw = codes.astype(np.uint8).tobytes()
    return [raw[end - size : end] for size, end in zip(sizes, ends, strict=True)]


# ---------------------------------------------------------------- images


def image_key(features: Features, path: str) -> str:
    """The key of a camera; where there is none, that below steps/observation/."""
    return find(features, path, _IMAGE_BASES) or schema.OBSERVATION + path


def several_texts(features: Features, text_key: str, of: Declaration = NOTHING) -> bool:
    """Whether a step may have more than one text."""
    keys = [find(features, path) for path in selection.paths(text_key)]
    says = [of[key] for key in keys if key in of and of[key].dtype == "text"]
    declared = any(one.shape or one.is_sequence for one in says)
    return len(keys) > 1 or declared or any(key and key + FLAT in features for key in keys)


def images(features: Features, path: str) -> list[tuple[int, int]]:
    """Where the encoded images of a camera lie, as `Feature.spans`; [] where there are none."""
    try:
        feature = features.get(image_key(features, path))
    except FieldError:
        return []
    return feature.spans if feature is not None and feature.kind == tfrecord.BYTES else []


def pictures(
    features: Features, record: tfrecord.Buffer, path: str, of: Declaration = NOTHING
) -> list[bytes | np.ndarray]:
    """The picture of each step: its encoded bytes, or uint8 (H, W, 1, 3 or 4) of a tensor."""
    key = image_key(features, path)
    if key + FLAT in features:
        raise FieldError(f"{key} is a sequence of pictures in each step, not one")
    feature, says = features.get(key), of.get(key)
    if key.startswith(schema.METADATA) or feature is None:
        return []
    if says and says.is_image and (says.dtype.startswith("float") or _is_depth(says)):
        raise FieldError(f"{key} is {says}, no picture of 8 bits")
    raw = feature.kind in (tfrecord.INT64, tfrecord.FLOAT) or (says and says.encoding != "none")
    if not raw:
        return feature.byte_items(record)
    if says is None or not is_picture(says):
        what = says or f"{feature.kind} of unknown shape"
        raise FieldError(f"{key} is {what}, no uint8 tensor (height, width, channels)")
    values = _flat(feature, record, key, says)
    if values.size % math.prod(says.shape):
        raise FieldError(f"{key} has {values.size} values, which are no pictures {says}")
    if values.dtype != np.uint8:
        if values.size and (values.min() < 0 or values.max() > 255):
            raise FieldError(f"{key} is {says}, but holds {values.min()} to {values.max()}")
        values = values.astype(np.uint8)
    height, width, *channels = says.shape
    return list(values.reshape(-1, height, width, *(channels or [1])))


def _is_depth(of: Declared) -> bool:
    return of.dtype == "uint16" and of.shape[2:] in ((), (1,))


def is_picture(of: Declared) -> bool:
    """Whether a tensor can be one."""
    sized = len(of.shape) in (2, 3) and min(of.shape) > 0 and min(of.shape[:2]) > 1
    return of.dtype == "uint8" and sized and of.shape[2:] in ((), (1,), (3,), (4,))


def scalar(features: Features, record: tfrecord.Buffer, key: str) -> str | float | int | None:
    """The first value under a full key, None where there is none."""
    feature = features.get(key)
    values = () if feature is None else feature.values(record)
    if not len(values):
        return None
    first = values[0]
    return first.decode(errors="replace") if isinstance(first, bytes) else first.item()
