"""Two servers for the tests of a file: of a policy of actions, and of one of latent actions."""

import pytest
from served import TOKEN, serving
from tiny_policy import make_policy, write

from experiments.quantizer import tabletop
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
    config = tabletop.get_config("quick=True")
    config.data.image_size = (32, 48)
    config.model.update(
        dim=32, mlp_dim=64, heads=4, head_dim=8, spatial_depth=1, temporal_depth=1, decoder_depth=1
    )
    config.model.code_length = 3
    return write(tmp_path_factory.mktemp("quantizer") / "run", config.lock(), {})


@pytest.fixture(scope="module")
def latent_server(latent_run, quantizer_run):
    """With a token and pictures."""
    with serving(latent_run, "--quantizer", quantizer_run, token=TOKEN) as found:
        yield found
