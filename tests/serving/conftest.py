"""Two servers for the tests of a file: of a policy of actions, and of one of latent actions; and a
browser."""

import re
import subprocess
from collections.abc import Iterator

import pytest
import requests
from browser import CHROMIUM, Page
from served import TOKEN, serving
from tiny_policy import make_policy, quantizer_config, write

from lapa_jax.runs import loaded


@pytest.fixture(scope="module")
def action_run(quick_compile, tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("action") / "run", "action")


@pytest.fixture(scope="module")
def action_policy(action_run):
    return loaded.load_policy(action_run)


@pytest.fixture(scope="module")
def action_server(action_run):
    flags = ("--action_names", "x,grip", "--control_hz", 5, "--requests_per_second", 0)
    with serving(action_run, *flags) as found:
        yield found


@pytest.fixture(scope="module")
def latent_run(quick_compile, tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("latent") / "run", "latent")


@pytest.fixture(scope="module")
def quantizer_run(quick_compile, tmp_path_factory):
    return write(tmp_path_factory.mktemp("quantizer") / "run", quantizer_config(), {})


@pytest.fixture(scope="module")
def latent_server(latent_run, quantizer_run):
    """With a token and pictures."""
    with serving(latent_run, "--quantizer", quantizer_run, token=TOKEN) as found:
        yield found


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
