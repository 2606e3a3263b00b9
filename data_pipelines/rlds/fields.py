"""Actions and instructions of RLDS episodes, under whatever keys a data set keeps them.

A numbers key is one key below `steps/`, or several joined by commas, whose values stand side by
side: "action/world_vector,action/rotation_delta,action/open_gripper". "[:3]" behind a key takes the
first three numbers of each step. A text key holds text, or the bytes of UTF-8 text as integers,
filled up with zeros (Language Table).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from data_pipelines.rlds import schema, tfrecord

_PART = re.compile(r"(?P<key>[^\[\],\s]+)(\[:(?P<stop>[1-9]\d*)\])?")

Features = Mapping[str, tfrecord.Feature]


class FieldError(ValueError):
    """An episode does not hold what a key says; the message is the reason."""


def parts(numbers_key: str) -> list[tuple[str, int | None]]:
    """(full key of the feature, how many numbers of it: None for all) of a numbers key; "": []."""
    if not numbers_key:
        return []
    found = [_PART.fullmatch(text.strip()) for text in numbers_key.split(",")]
    if None in found:
        raise ValueError(
            f"key {numbers_key!r} is not KEY, KEY[:N] or several of these joined by commas"
        )
    return [("steps/" + one["key"], one["stop"] and int(one["stop"])) for one in found]


def numbers(
    features: Features, record: tfrecord.Buffer, steps: int, numbers_key: str
) -> np.ndarray | None:
    """float32 (steps, A) under a numbers key, None where there is none of its features.

    Integers and flags are numbers beside others; a key that stands alone must hold floats.
    """
    wanted = parts(numbers_key)
    present = {key for key, one in features.items() if one.kind != tfrecord.EMPTY}
    missing = [key for key, _ in wanted if key not in present]
    if len(missing) == len(wanted):
        return None
    if missing:
        there = [key for key, _ in wanted if key in present]
        raise FieldError(f"it has {there}, but not {missing}")
    columns = []
    for key, stop in wanted:
        feature = features[key]
        if feature.kind == tfrecord.INT64 and len(wanted) > 1:
            values = feature.ints(record).astype(np.float32)
        elif feature.kind == tfrecord.FLOAT:
            values = feature.floats(record)
        else:
            raise FieldError(f"{key} holds {feature.kind}, not float")
        if values.size == 0 or values.size % steps:
            raise FieldError(f"{steps} images but {values.size} values of {key}")
        values = values.reshape(steps, -1)
        if stop and values.shape[1] < stop:
            raise FieldError(f"{key} has {values.shape[1]} values a step, not the {stop} asked for")
        columns.append(values[:, :stop])
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def texts(features: Features, record: tfrecord.Buffer, steps: int, text_key: str) -> list[str]:
    """The text of each step, or one for all, without blanks around; [] where there is none."""
    key = "steps/" + text_key
    feature = features.get(key)
    if feature is None or feature.kind == tfrecord.EMPTY:
        return []
    if feature.kind == tfrecord.BYTES:
        items = feature.byte_items(record)
    elif feature.kind == tfrecord.INT64:
        items = _code_rows(feature.ints(record), steps, key)
    else:
        raise FieldError(f"{key} holds {feature.kind}, not text")
    if len(items) not in (1, steps):
        raise FieldError(f"{steps} images but {len(items)} values of {key}")
    try:
        decoded = {item: item.decode().strip() for item in set(items)}
    except UnicodeDecodeError as error:
        raise FieldError(f"{key} is not UTF-8: {error}") from error
    return [decoded[item] for item in items]


def _code_rows(codes: np.ndarray, steps: int, key: str) -> list[bytes]:
    if not codes.size or codes.size % steps or codes.size == steps:
        raise FieldError(f"{key} holds int64, not text ({codes.size} numbers in {steps} steps)")
    if codes.min() < 0 or codes.max() > 255:
        raise FieldError(f"{key} holds {codes.max()}, not the bytes of a text")
    rows = codes.astype(np.uint8).reshape(steps, -1)
    return [row.tobytes().split(b"\0", 1)[0] for row in rows]


def images(features: Features, key: str) -> list[tuple[int, int]]:
    """Where the images of an observation lie, as `Feature.spans`; [] where there are none."""
    feature = features.get(schema.OBSERVATION + key)
    return feature.spans if feature is not None and feature.kind == tfrecord.BYTES else []


def cameras(features: Features, record: tfrecord.Buffer) -> list[str]:
    """The observations that are pictures, JPEG or PNG, sorted: not texts or serialised tensors."""
    return [
        key.removeprefix(schema.OBSERVATION)
        for key, feature in sorted(features.items())
        if key.startswith(schema.OBSERVATION) and _use(feature, record) == "images"
    ]


def listing(features: Features, record: tfrecord.Buffer) -> str:
    """What an episode has, by what it may serve for: for error messages."""
    groups = {"images": cameras(features, record), "numbers": [], "texts": []}
    for key, feature in sorted(features.items()):
        if key.startswith("steps/") and (use := _use(feature, record)) in ("numbers", "texts"):
            groups[use].append(key.removeprefix("steps/"))
    return "; ".join(f"{what}: {keys or 'none'}" for what, keys in groups.items())


def _use(feature: tfrecord.Feature, record: tfrecord.Buffer) -> str:
    """images, numbers or texts; "" where there is nothing."""
    if feature.kind in (tfrecord.FLOAT, tfrecord.INT64):
        return "numbers"
    if not feature.spans:
        return ""
    start, size = feature.spans[0]
    return "images" if schema.picture_kind(memoryview(record)[start : start + size]) else "texts"


def scalar(features: Features, record: tfrecord.Buffer, key: str) -> str | float | int | None:
    """The first value under a full key, None where there is none."""
    feature = features.get(key)
    values = () if feature is None else feature.values(record)
    if not len(values):
        return None
    first = values[0]
    return first.decode(errors="replace") if isinstance(first, bytes) else first.item()
