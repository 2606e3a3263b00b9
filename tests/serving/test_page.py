"""The page in headless Chromium."""

import re

import numpy as np
import pytest
import requests
from browser import needs_browser
from served import TOKEN, b64, picture, png

pytestmark = needs_browser
TEXT = "push the red block"


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
