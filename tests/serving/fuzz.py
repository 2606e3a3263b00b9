"""Requests that nobody should send: JSON by hypothesis, mutated msgpack, wrong images, broken HTTP.

Every function takes a seeded generator and gives bytes; none is meant to be answered with 200,
though some are.
"""

import base64
import functools
import io
import json
import struct
import zlib
from collections.abc import Callable

import numpy as np
import simplejpeg
from hypothesis import strategies as st
from openpi_client import msgpack_numpy
from PIL import Image

Random = np.random.Generator
KEYS = ("image", "instruction", "prompt", "observation/image", "unnorm_key", "picture", "encoded")
ARRAY_KEYS = ("__numpy__", "dtype", "shape")
DTYPES = ("|u1", "<f8", "<i4", "|O", "|V4", "<U9", "[('a', 'O')]", "u1,u1", "")


# --- JSON, by hypothesis ---

_text = st.text(max_size=20) | st.sampled_from(["/etc/passwd", "http://127.0.0.1/", "data:,", ""])
_leaf = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | _text
    | st.binary(max_size=40).map(lambda x: base64.b64encode(x).decode())
)
_array = st.fixed_dictionaries(
    {"__numpy__": st.binary(max_size=64).map(lambda x: base64.b64encode(x).decode()) | _leaf},
    optional={
        "dtype": st.sampled_from(DTYPES) | _leaf,
        "shape": st.lists(st.integers(-2, 2**40), max_size=6) | _leaf,
    },
)
_value = st.recursive(
    _leaf | _array,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS + ARRAY_KEYS) | _text, inner, max_size=4)
    ),
    max_leaves=12,
)
messages = st.dictionaries(st.sampled_from(KEYS), _value, max_size=5) | _value


# --- Images ---


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, kind: int, rows: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def pixels(rng: Random, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    return rng.integers(0, 256, (*size, 3), np.uint8)


def plain_png(rng: Random) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(rng)).save(file, "PNG")
    return file.getvalue()


def bomb(rng: Random) -> bytes:
    return bombs()[rng.integers(len(bombs()))]


@functools.cache
def bombs() -> list[bytes]:
    """Little data that wants much memory: pixels, rows that do not fit, texts, profiles."""
    flat, few = bytes(20_000_000), bytes(145 * 32)
    return [
        *(png_of(side, side, 2, flat) for side in (3_000, 30_000, 2**31 - 1)),
        png_of(48, 32, 2, flat),
        png_of(48, 32, 2, few, chunk(b"zTXt", b"a\0\0" + zlib.compress(flat))),
        png_of(48, 32, 2, few, chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(flat))),
        png_of(48, 32, 2, few, chunk(b"iCCP", b"a\0\0" + zlib.compress(flat))),
        png_of(48, 32, 2, few, *[chunk(b"tEXt", b"a\0b")] * 20_000),
        giant_jpeg(),
        png_of(2_000, 2_000, 2, bytes(2_000 * 6_001)),  # allowed, and large
        png_of(40_000, 1, 2, flat),
    ]


def giant_jpeg() -> bytes:
    jpeg = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(jpeg)


def damaged(rng: Random) -> bytes:
    image = pixels(rng)
    return mutate(rng, plain_png(rng) if rng.random() < 0.5 else simplejpeg.encode_jpeg(image))


def strange(rng: Random) -> bytes:
    """Files of other kinds and modes."""
    mode = str(rng.choice(["1", "L", "P", "LA", "RGBA", "I;16"]))
    form = str(rng.choice(["PNG", "GIF", "BMP", "TIFF", "WEBP"]))
    file, image = io.BytesIO(), Image.fromarray(pixels(rng))
    if mode == "I;16":
        image, form = Image.fromarray(rng.integers(0, 2**16, (8, 8), np.uint16)), "PNG"
    elif form == "PNG" or mode in ("L", "P"):
        image = image.convert(mode)
    image.save(file, form)
    return file.getvalue()


# --- Messages ---


def mutate(rng: Random, data: bytes) -> bytes:
    """A few bytes flipped, cut out, put in, or the end cut off."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(found) + 1)) if rng.random() < 0.5 else int(rng.integers(40))
        match rng.integers(4):
            case 0:
                found[at : at + 1] = bytes([rng.integers(256)])
            case 1:
                del found[at : at + int(rng.integers(1, 9))]
            case 2:
                found[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 3 if rng.random() < 0.3:
                del found[at:]
    return bytes(found)


def msgpack_message(rng: Random) -> bytes:
    image = pixels(rng, tuple(rng.integers(1, 60, 2)))
    if rng.random() < 0.3:
        kind = rng.choice(["f4", "f8", "i8", "?", "u2", "M8[s]"])
        image = image.astype(kind)
    message = {"observation/image": image, "prompt": "push"}
    if rng.random() < 0.3:
        message[str(rng.choice(["picture", "unnorm_key", "x", "image"]))] = rng.random()
    packed = msgpack_numpy.packb(message)
    return packed if rng.random() < 0.2 else mutate(rng, packed)


def json_message(image: bytes) -> bytes:
    image = base64.b64encode(image).decode()
    return json.dumps({"image": image, "instruction": "push"}).encode()


def json_image(rng: Random) -> bytes:
    """A whole JSON message around a wrong image."""
    make: Callable[[Random], bytes] = [bomb, damaged, strange][rng.integers(3)]
    return json_message(make(rng))


def raw_http(rng: Random) -> bytes:
    """Not quite HTTP."""
    start = b"POST /act HTTP/1.1\r\nHost: localhost\r\n"
    upgrade = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    return [
        lambda: rng.bytes(200),
        lambda: start + b"Content-Length: -5\r\n\r\n{}",
        lambda: start + b"Content-Length: 99999999999\r\n\r\n{}",
        lambda: start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        lambda: start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        lambda: start + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        lambda: b"POST /act HTTP/1.1\r\n\r\n",
        lambda: b"GET /%00/../%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        lambda: upgrade + b"Sec-WebSocket-Version: 99\r\n\r\n",
        lambda: upgrade + b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
        lambda: mutate(rng, start + b"Content-Length: 2\r\n\r\n{}"),
    ][rng.integers(11)]()
