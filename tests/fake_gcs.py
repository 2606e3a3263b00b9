"""A fake of Google Cloud Storage's JSON interface, as much of it as gcsfs, google-cloud-storage and
tensorstore use, in the memory of the test.

An object is (bytes, generation, seconds of its writing); a generation grows with every writing of
anything.
"""

import base64
import contextlib
import datetime
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c


class FakeStorage:
    """Buckets that exist whatever their name; `objects`: by bucket/name."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int, float]] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}  # resumable: id → (key, bytes so far)
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)
        self.url = ""

    def names(self, prefix: str) -> list[str]:
        """Keys that begin so, in order."""
        with self.lock:
            return sorted(key for key in self.objects if key.startswith(prefix))

    def write(self, key: str, data: bytes) -> None:
        with self.lock:
            self.objects[key] = (bytes(data), next(self._numbers), time.time())

    def begin(self, key: str) -> str:
        """A resumable upload."""
        with self.lock:
            number = str(next(self._numbers))
            self.uploads[number] = (key, bytearray())
            return number

    @contextlib.contextmanager
    def serve(self) -> Iterator["FakeStorage"]:
        """Answers at `url` while inside."""
        handler = type("Handler", (_Handler,), {"storage": self})
        server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def environment(self) -> dict[str, str]:
        """Points the three clients here, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs, google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore
            "GOOGLE_CLOUD_PROJECT": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google what kind a bucket is
        }


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024  # clients open many connections at once

    def handle_error(self, *args: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # of clients that were killed
            super().handle_error(*args)


class _Handler(BaseHTTPRequestHandler):
    storage: FakeStorage
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self._body()
        found = re.fullmatch(
            r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", parts.path
        )
        if not found:
            self._answer(404, {})
            return
        bucket, name = found[1], unquote(found[2]) if found[2] is not None else None
        with self.storage.lock:
            if parts.path.startswith("/upload/"):
                self._upload(bucket, query, body)
            elif name is None and not parts.path.endswith("/o"):
                self._answer(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})
            elif name is None:
                self._list(bucket, query)
            elif "/moveTo/o/" in name:
                self._move(bucket, *name.split("/moveTo/o/"))
            else:
                self._object(f"{bucket}/{name}", query)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        if not isinstance(value, bytes):
            self.send_header("Content-Type", "application/json")
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(data)

    def _missing(self, key: str) -> None:
        self._answer(404, {"error": {"code": 404, "message": f"no object {key}"}})

    def _resource(self, key: str) -> dict[str, Any]:
        data, generation, seconds = self.storage.objects[key]
        bucket, _, name = key.partition("/")
        when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        text = when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "timeCreated": text,
            "updated": text,
            "crc32c": base64.b64encode(google_crc32c.Checksum(data).digest()).decode(),
        }

    def _differs(self, key: str, query: dict[str, str]) -> int | None:
        """The status where a condition on the generation fails."""
        generation = self.storage.objects[key][1] if key in self.storage.objects else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            return 412
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            return 304
        return None

    def _object(self, key: str, query: dict[str, str]) -> None:
        if code := self._differs(key, query):
            self._answer(code, b"")
        elif key not in self.storage.objects:
            self._missing(key)
        elif self.command == "DELETE":
            del self.storage.objects[key]
            self._answer(204, b"")
        elif query.get("alt") == "media":
            self._media(key)
        else:
            self._answer(200, self._resource(key))

    def _media(self, key: str) -> None:
        data, generation, _ = self.storage.objects[key]
        headers = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            self._answer(200, data, headers)
            return
        first = int(span[1]) if span[1] else max(0, len(data) - int(span[2]))
        last = min(int(span[2]) if span[1] and span[2] else len(data) - 1, len(data) - 1)
        if first > last:
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(206, data[first : last + 1], headers)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        for key in self.storage.names(f"{bucket}/{prefix}"):
            name = key.partition("/")[2]
            if name < query.get("startOffset", "") or name >= query.get("endOffset", "\U0010ffff"):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self._resource(key))
        limit = int(query.get("maxResults", 1000))  # nothing here has more pages than one
        found = {"kind": "storage#objects", "items": items[:limit], "prefixes": sorted(folders)}
        self._answer(200, found)

    def _move(self, bucket: str, source: str, target: str) -> None:
        found = self.storage.objects.pop(f"{bucket}/{source}", None)
        if found is None:
            self._missing(f"{bucket}/{source}")
            return
        self.storage.write(f"{bucket}/{target}", found[0])
        self._answer(200, self._resource(f"{bucket}/{target}"))

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        kind = query["uploadType"]
        if kind == "media":
            self._store(f"{bucket}/{query['name']}", query, body)
        elif kind == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1]
            _, first, second, _ = body.split(b"--" + boundary.encode())
            name = json.loads(first.partition(b"\n\n")[2] or first.partition(b"\r\n\r\n")[2])[
                "name"
            ]
            head = re.match(rb"\r?\n.*?\r?\n\r?\n", second, re.DOTALL)[0]
            data = second[len(head) :]
            data = data[: -2 if data.endswith(b"\r\n") else -1]
            self._store(f"{bucket}/{name}", query, data)
        elif "upload_id" not in query:
            key = f"{bucket}/{query.get('name') or json.loads(body)['name']}"
            where = f"{self.storage.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable"
            self._answer(200, {}, {"Location": f"{where}&upload_id={self.storage.begin(key)}"})
        else:
            key, held = self.storage.uploads[query["upload_id"]]
            held += body
            if self.headers.get("Content-Range", "").endswith("/*"):
                self._answer(308, b"", {"Range": f"bytes=0-{len(held) - 1}"})
            else:
                del self.storage.uploads[query["upload_id"]]
                self._store(key, query, held)

    def _store(self, key: str, query: dict[str, str], data: bytes) -> None:
        if code := self._differs(key, query):
            self._answer(code, b"")
            return
        self.storage.write(key, data)
        self._answer(200, self._resource(key))
