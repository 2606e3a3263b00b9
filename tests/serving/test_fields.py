"""What clients of others send, by name: what is used, what is not looked at, what is missing."""

import json
import re

import json_numpy
import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from served import SIZE, b64, picture, png

from lapa_jax.serving import fields
from lapa_jax.serving.limits import Limits, Refused
from lapa_jax.serving.messages import Reader

A, B, STATE = picture(1), picture(2), np.zeros(8)
CLIENTS = {  # the image that a policy of one camera sees is A
    "LIBERO": {
        "observation/image": A,
        "observation/wrist_image": B,
        "observation/state": STATE,
        "prompt": "push",
    },
    "nested": {"observation": {"image": A, "state": {"joints": STATE}}, "prompt": "push"},
    "OFT": {"full_image": A, "wrist_image": B, "state": STATE, "instruction": "push"},
    "OpenVLA": {"image": A, "instruction": "push", "unnorm_key": "bridge_orig"},
    "LeRobot": {"image": A, "task": "push", "observation.state": STATE.astype(np.float32)},
    "odd": {
        "image": A,
        "prompt": "push",
        "depth": np.zeros((4, 4), np.uint16),
        "five": np.zeros((1, 1, 1, 1, 1)),
        "unnorm_key": np.float32(3),
        "observation": {"wrist": b"GIF89a"},
    },
}
DROID = {
    "observation/exterior_image_1_left": A,
    "observation/wrist_image_left": B,
    "observation/joint_position": STATE,
    "prompt": "push",
}
ALOHA = {"images": {"cam_low": B, "cam_high": np.moveaxis(A, -1, 0)}, "prompt": "push"}


def reader(*image_keys: str, frames: int = 1, cameras: int = 1) -> Reader:
    return Reader(SIZE, frames, cameras, image_keys, "crop", Limits())


def refusal(of: Reader, message: dict) -> str:
    with pytest.raises(Refused) as error:
        of.from_msgpack(msgpack_numpy.packb(message))
    assert error.value.status == 422
    return error.value.reason


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_of_others(name):
    """By msgpack and by JSON; what the policy does not use may be anything."""
    message = CLIENTS[name]
    found = reader().from_msgpack(msgpack_numpy.packb(message))
    np.testing.assert_array_equal(found.images, A[None])
    assert found.instruction == "push"
    if name != "odd":
        found = reader().from_json(json_numpy.dumps(message).encode())
        np.testing.assert_array_equal(found.images, A[None])
        assert found.form == ("arrays" if name == "OFT" else "array")
    assert found.unnorm_key == ("bridge_orig" if name == "OpenVLA" else "")


def test_cameras_by_name():
    """In the order of training; of each frame one by every camera."""
    one, two = "observation/exterior_image_1_left", "observation/wrist_image_left"
    droid, aloha = msgpack_numpy.packb(DROID), msgpack_numpy.packb(ALOHA)
    np.testing.assert_array_equal(reader(one).from_msgpack(droid).images, [A])
    np.testing.assert_array_equal(reader(two, one, cameras=2).from_msgpack(droid).images, [B, A])
    np.testing.assert_array_equal(reader("images/cam_high").from_msgpack(aloha).images, [A])
    histories = {"a": [b64(png(A)), b64(png(B))], "b": [B.tolist(), A.tolist()], "prompt": "push"}
    both = reader("a", "b", frames=2, cameras=2)
    found = both.from_json(json.dumps(histories).encode())
    np.testing.assert_array_equal(found.images, [A, B, B, A])
    assert "1 images in a, and the policy takes 2" in refusal(both, histories | {"a": A})
    with pytest.raises(ValueError, match="--image_keys a: the policy sees 2 cameras"):
        reader("a", cameras=2)
    with pytest.raises(ValueError, match="not distinct"):
        reader("a", "a", cameras=2)


def test_a_key_that_occurs_twice_is_named():
    told = "the key 'prompt' occurs twice"
    texts = [b'{"image": 1, "prompt": "a", "prompt": "b"}', b'{"a": {"prompt": 1, "prompt": 1}}']
    packed = msgpack.packb({"prompt": 1, "prompu": 2}).replace(b"prompu", b"prompt")
    for read, sent in (*((reader().from_json, x) for x in texts), (reader().from_msgpack, packed)):
        with pytest.raises(Refused) as error:
            read(sent)
        assert (error.value.status, error.value.reason) == (422, told)


def test_what_is_missing():
    """What was sent, and what is needed."""
    sent = CLIENTS["LIBERO"] | {"observation/imgae": A}
    del sent["observation/image"]
    told = refusal(reader(), sent)
    for word in ("'observation/image'", "'full_image'", "'observation/imgae'", "'prompt'"):
        assert word in told
    assert "instruction: the policy needs one of" in refusal(reader(), {"image": A, "promt": "x"})
    assert "both ['image', 'full_image'] were sent" in refusal(
        reader(), {"image": A, "full_image": A, "prompt": ""}
    )
    told = refusal(reader("observation/top"), {"observation": {"tpo": A, 3.5: 1}, "prompt": "x"})
    assert "needs 'observation/top', and the keys sent are ['observation/tpo', " in told
    many = {str(i): 0 for i in range(99)} | {"x" * 999: 0, "\ud800": 0}
    with pytest.raises(fields.NotSent) as error:
        fields.find(many, ["image"], "image")
    assert len(str(error.value)) < 400 and "and more" in str(error.value)


WRONG = [
    {"image": A.astype("m8[s]"), "prompt": "x"},
    {"image": np.zeros((1, 1, 1, 1, 1)), "prompt": "x"},
    {"image": {"a": A}, "prompt": "x"},
    {"image": [[{"a": A}]], "prompt": "x"},
    {"image": [[[A]]], "prompt": "x"},
    {"image": b"\x89PNG\r\n\x1a\n" + bytes(40), "prompt": "x"},
    {"image": b"\xff\xd8\xff\xe0" + bytes(40), "prompt": "x"},
    {"image": A, "prompt": A},
    {"image": A, "prompt": "x", "picture": A},
    {"image": np.float32(3), "prompt": "x"},
    {"image": {b"__ndarray__": True, b"data": b"x", b"dtype": {"a": A}, b"shape": {"a": A}}}
    | {"prompt": ""},
    {
        "image": {b"__ndarray__": True, b"data": {"a": 1}, b"dtype": "|u1", b"shape": [A]},
        "prompt": "",
    },
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_answers_show_no_objects(case):
    told = refusal(reader(), WRONG[case])
    assert not re.search(r"0x[0-9a-f]{4}|object at|Array\(|<", told.replace("'<", "'")), told
