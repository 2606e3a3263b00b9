"""Headless Chromium, driven over its debugging protocol."""

import base64
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import b64, png
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no browser: apt-get install chromium")


class Page:
    """A tab. Screenshots are kept in the folder LAPA_TEST_SCREENSHOTS."""

    def __init__(self, address: str):
        self._socket, self._numbers = connect(address, max_size=None), itertools.count(1)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(30))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def js(self, code: str) -> Any:
        found = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        return self.js(f"[...document.querySelectorAll('{selector}')].map((x) => x.textContent)")

    def wait(self, code: str) -> None:
        deadline = time.monotonic() + 30
        while not self.js(code):
            assert time.monotonic() < deadline, f"{code}: {self.js('document.body.innerText')}"
            time.sleep(0.05)

    def drop(self, image: np.ndarray) -> None:
        """As if a PNG had been dropped on the page."""
        self.js(f"""(() => {{
            const bytes = Uint8Array.from(atob("{b64(png(image))}"), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "frame.png", {{ type: "image/png" }}));
            const event = new DragEvent("drop", {{ dataTransfer: data, bubbles: true }});
            document.getElementById("drop").dispatchEvent(event);
        }})()""")
        self.wait("document.getElementById('image').naturalWidth > 0")

    def ask(self, **values: str) -> None:
        for name, value in values.items():
            self.js(f"document.getElementById({name!r}).value = {json.dumps(value)}")
        self.js("document.querySelector('button').click()")

    def screenshot(self, name: str) -> None:
        folder = os.environ.get("LAPA_TEST_SCREENSHOTS")
        if folder:
            data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            Path(folder, name).write_bytes(base64.b64decode(data))
