"""The page in headless Chromium, driven over its debugging protocol."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from served import TOKEN, b64, picture, png
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no browser: apt-get install chromium")
TEXT = "push the red block"


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


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[int]:
    """The port of its debugging protocol."""
    folder = tmp_path_factory.mktemp("chromium")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--remote-debugging-port=0", f"--user-data-dir={folder}", "--window-size=900,1100"),
        "about:blank",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                found = re.search(r"listening on ws://127.0.0.1:(\d+)/", line)
                if found:
                    break
            yield int(found[1])
        finally:
            process.terminate()


@pytest.fixture
def open_page(browser):
    def load(url: str) -> Page:
        tab = requests.put(f"http://127.0.0.1:{browser}/json/new?{url}").json()
        page = Page(tab["webSocketDebuggerUrl"])
        page.wait("document.readyState === 'complete' && !!document.querySelector('main')")
        return page

    return load


def test_actions_as_bars(open_page, action_server, action_policy):
    page = open_page(action_server.url)
    page.wait("document.getElementById('policy').textContent.includes('action policy')")
    assert page.js("document.getElementById('token').offsetParent === null")  # not shown
    page.ask(instruction=TEXT)
    page.wait("document.getElementById('status').textContent.includes('Choose an image')")
    page.drop(picture(1, (64, 96)))
    page.ask(instruction="word " * 100)
    page.wait("document.getElementById('status').textContent.includes('model.text_length=24')")
    page.drop(picture(1))
    page.ask(instruction=TEXT)
    page.wait("!document.getElementById('answer').hidden")
    a = np.asarray(action_policy.predict_action(picture(1), TEXT))
    shown = page.js("document.getElementById('what').textContent")
    assert [f"{x:.4f}" for x in a] == re.findall(r"-?\d+\.\d+", shown)
    names = page.js(
        "[...document.querySelectorAll('.bar span:first-child')].map(x => x.textContent)"
    )
    assert names == ["x", "grip"]
    # each bar goes from 0 to the value, within the range of the bins
    low, high = np.array([-0.8, -0.2]), np.array([0.8, 1.0])
    places = page.js(
        "[...document.querySelectorAll('.fill')].map(x => [x.style.left, x.style.width])"
    )
    for (left, width), x, lowest, highest in zip(places, a, low, high, strict=True):
        start = (min(0.0, x) - lowest) / (highest - lowest) * 100
        assert float(left[:-1]) == pytest.approx(start, abs=0.1)
        assert float(width[:-1]) == pytest.approx(abs(x) / (highest - lowest) * 100, abs=0.1)
    page.screenshot("action.png")


def test_latent_actions_as_picture(open_page, latent_server):
    """The page asks for the token first."""
    page = open_page(latent_server.url)
    page.wait("!document.getElementById('token_label').hidden")
    page.drop(picture(2))
    page.ask(instruction=TEXT)
    page.wait("document.getElementById('status').textContent.includes('asks for a token')")
    page.ask(token=TOKEN)
    page.wait("!document.getElementById('answer').hidden")
    message = {"image": b64(png(picture(2))), "instruction": TEXT, "picture": True}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = requests.post(f"{latent_server.url}/act", json=message, headers=headers).json()
    assert page.js("document.getElementById('picture').src") == answer["picture"]
    shown = page.js("document.getElementById('what').textContent")
    assert [int(x) for x in re.findall(r"\d+", shown)] == answer["z"]
    expected = [f"{100 * max(p):.1f} %" for p in answer["probabilities"]]
    assert page.texts(".chosen .number") == expected
    page.screenshot("latent.png")
