"""What there is in an RLDS episode, as it is selected (fields.py): for defaults and messages."""

from __future__ import annotations

from data_pipelines.rlds import fields, schema, selection, tfrecord
from data_pipelines.rlds.declared import NOTHING, Declaration

# What is in every step, or read whatever is selected.
_FLAGS = {schema.IS_FIRST, schema.IS_LAST, schema.IS_TERMINAL, schema.REWARD, schema.DISCOUNT}
_FLAGS |= {schema.FPS, schema.METADATA + "file_path"}


# Of the fields that a corpus may lack.
STANDARD = {"action": "action", "instruction": "language_instruction"}


def require(features: fields.Features, selected: str, standard: str = "") -> None:
    """Raises FieldError where there is no field of a path, for what is asked for by name. What is
    `standard` need not be there."""
    if selected == standard:
        return
    for path, _ in fields.parts(selected):
        if fields.find(features, path) is None:
            inner = [_path(key) for key in _keys(features) if f"/{path}/" in f"/{_path(key)}"]
            of = f": it is a dictionary of {inner}, name what is wanted" if inner else ""
            raise fields.FieldError(f"there is no field {path}{of}")


def cameras(
    features: fields.Features, record: tfrecord.Buffer, of: Declaration = NOTHING
) -> list[str]:
    """The paths of what is pictures in the steps: JPEG, PNG or tensors; not texts."""
    found = [key for key in _keys(features) if _use(features, record, key, of) == "images"]
    return [_path(key, "images") for key in found]


def unused(
    features: fields.Features, record: tfrecord.Buffer, of: Declaration, camera: str, *others: str
) -> dict[str, list[str]]:
    """The paths of what none of the selections takes: cameras, and other fields."""
    taken = {fields.find(features, part.path) for one in others for part in fields.parts(one)}
    taken |= {fields.image_key(features, path) for path in selection.paths(camera)} | _FLAGS
    found = {"cameras": [], "fields": []}
    for key in _keys(features):
        use = _use(features, record, key, of)
        if key not in taken:
            found["cameras" if use == "images" else "fields"].append(_path(key, use))
    return found


def has_steps(features: fields.Features) -> bool:
    """Whether there is anything in the steps."""
    return any(
        key.startswith(fields.STEPS) and any(size for _, size in feature.spans)
        for key, feature in features.items()
    )


def num_steps(features: fields.Features, record: tfrecord.Buffer) -> int | None:
    """By the flags, else by the pictures; None where there are neither."""
    flags = features.get(schema.IS_FIRST)
    if flags is not None and flags.kind == tfrecord.INT64:
        return len(flags.ints(record))
    for path in cameras(features, record):
        return len(fields.images(features, path))
    return None


def listing(features: fields.Features, record: tfrecord.Buffer, of: Declaration = NOTHING) -> str:
    """What an episode has, with types and shapes, by what it may serve for: for messages."""
    groups = {"images": [], "numbers": [], "texts": [], "": [], "of the episode": []}
    steps = num_steps(features, record)
    for key in _keys(features):
        use = _use(features, record, key, of)
        kind = of.get(key) or _seen(features, record, key, use, steps)
        group = groups[use if key.startswith(fields.STEPS) else "of the episode"]
        group.append(f"{_path(key, use)} ({kind})")
    empty = groups.pop("")
    if empty:
        groups["without values"] = empty
    return "; ".join(f"{what}: {', '.join(keys) or 'none'}" for what, keys in groups.items())


def _keys(features: fields.Features) -> list[str]:
    return sorted({key.partition("/ragged_")[0] for key in features})


def _path(key: str, use: str = "") -> str:
    """As it is selected."""
    is_observation = use == "images" and key.startswith(schema.OBSERVATION)
    return key.removeprefix(schema.OBSERVATION if is_observation else fields.STEPS)


def _use(features: fields.Features, record: tfrecord.Buffer, key: str, of: Declaration) -> str:
    """images, numbers or texts; "" where there is nothing."""
    feature, says = features.get(key) or features.get(key + fields.FLAT), of.get(key)
    if feature is None or not feature.spans:
        return ""
    if key.startswith(fields.STEPS) and says and (says.is_image or fields.is_picture(says)):
        return "images"
    if feature.kind != tfrecord.BYTES or (says and says.encoding != "none"):
        return "numbers"
    start, size = feature.spans[0]
    picture = schema.picture_kind(memoryview(record)[start : start + size])
    return "images" if picture and key.startswith(fields.STEPS) else "texts"


def _seen(
    features: fields.Features, record: tfrecord.Buffer, key: str, use: str, steps: int | None
) -> str:
    """Type and shape of what is not declared, by the record."""
    feature = features.get(key) or features[key + fields.FLAT]
    if feature.kind == tfrecord.BYTES:
        if use != "images":
            return "text" if use == "texts" else "bytes"
        start, size = feature.spans[0]
        return schema.picture_kind(memoryview(record)[start : start + size])
    kind = {tfrecord.FLOAT: "float32", tfrecord.INT64: "int64"}.get(feature.kind, "nothing")
    if kind == "nothing":
        return kind
    size = len(feature.values(record))
    if key not in features:
        return f"{kind}[N]"
    rows = steps if steps and key.startswith(fields.STEPS) else 1
    return kind if size == rows else f"{kind}[{size // rows if size % rows == 0 else '?'}]"
