"""Chunks behind a server: openpi's broker, horizons, and answers that follow the one before."""

import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from served import picture, serving
from tiny import ROOT
from tiny_policy import make_policy

from experiments import base
from lapa_jax.arena.client import Policy, ServerError
from lapa_jax.envs.execution import FOLLOWING, Chunks, Execution
from lapa_jax.runs import loaded
from lapa_jax.serving.adapters import LeRobotPolicy
from lapa_jax.serving.limits import Limits, Refused
from lapa_jax.serving.messages import Reader

HORIZON, TEXT = 4, "push the red block"


@pytest.fixture(scope="module")
def run(quick_compile, tmp_path_factory):
    head = base.head("flow", dim=16, mlp_dim=24, steps=3)
    given = dict(target=head, action_horizon=HORIZON, execution_horizon=2)
    return make_policy(tmp_path_factory.mktemp("flow") / "run", "action", **given)


@pytest.fixture(scope="module")
def policy(run):
    return loaded.load_policy(run)


def test_another_rate_than_of_training_is_refused(run):
    with pytest.raises(ValueError, match="the policy acts at 5 Hz, --control_hz at 10 Hz"):
        with serving(run, "--control_hz", 10):
            pass


@pytest.fixture(scope="module")
def server(run):
    with serving(run, "--batch_sizes", 1, "--control_hz", 5, "--real_time") as found:
        yield found


def test_openpi_broker_is_execute_of_ours():
    """What it takes of numbered answers, and that it asks anew after a reset."""
    with np.load(ROOT / "tests/golden/heads/acting.npz") as file:
        taken, after = file["broker/actions"], file["broker/after_reset"]
    answers = iter(100 * (1 + i) + np.arange(6).reshape(3, 2) for i in range(3))
    chunks, found = Chunks(Execution(execute=3)), []
    for _ in range(5):
        if chunks.due:
            chunks.answered(next(answers))
        found.append(chunks.next())
    np.testing.assert_array_equal(found, taken)
    chunks.reset()
    chunks.answered(next(answers))
    np.testing.assert_array_equal(chunks.next(), after)


def test_openpi_clients_act_in_chunks(server, policy):
    """The broker of PyPI, unchanged, for as many actions as the metadata say."""
    robot = WebsocketClientPolicy("127.0.0.1", server.port)
    metadata = robot.get_server_metadata()
    numbers = [metadata[x] for x in ("prediction_horizon", "execution_horizon", "control_hz")]
    assert numbers == [HORIZON, 2, 5]
    for execute in (2, HORIZON):
        broker = ActionChunkBroker(robot, action_horizon=execute)
        for step in range(2 * execute):
            seed = step // execute * execute  # later pictures are not looked at
            seen = {"observation/image": picture(step), "prompt": TEXT}
            found = broker.infer(seen)["actions"]
            expected = np.asarray(policy.predict_action(picture(seed), TEXT))[step % execute]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        broker.reset()
    robot._ws.close()


def test_answers_follow_the_one_before(server, policy):
    """By the server as by the policy; weights of 0 change nothing."""
    image, before = picture(1), np.linspace(-0.5, 0.5, 2 * HORIZON).reshape(HORIZON, 2)
    seen = {"image": image, "prompt": TEXT}
    how = Execution(execute=2, delay=1)
    free = np.asarray(policy.predict_action(image, TEXT))
    with Policy(server.url.replace("http", "ws"), 60, 60) as client:
        for weights in (np.zeros(HORIZON), how.weights(HORIZON), np.ones(HORIZON)):
            weights = weights.astype(np.float32)
            sent = seen | dict(zip(FOLLOWING, (before.astype(np.float32), weights), strict=True))
            found = client.ask(sent, 2)
            expected = policy.predict_action(image, TEXT, going_on=(before, weights))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            assert (np.abs(found - free).max() < 1e-4) == (not weights.any())
        with pytest.raises(ServerError, match="number 0 of the going_on/weights is not finite"):
            client.ask(sent | {FOLLOWING[1]: np.full(HORIZON, np.nan)}, 2)


@pytest.mark.parametrize(
    "sent, why",
    [
        ({"prediction_horizon": 8}, "prediction_horizon 8: this policy's answers hold 4"),
        ({"prediction_horizon": "4"}, "prediction_horizon '4': this policy's answers"),
        ({"execution_horizon": 5}, "execution_horizon 5: it must be from 1 to 4"),
        ({"execution_horizon": True}, "execution_horizon True: it must be"),
        ({"control_hz": 10}, "control_hz 10: this policy acts at 5 Hz"),
        ({"control_hz": float("nan")}, "control_hz nan: this policy acts at 5 Hz"),
        ({FOLLOWING[0]: np.zeros((4, 2))}, "going_on/weights must be an array of \\[4\\]"),
        (
            {FOLLOWING[0]: np.zeros((3, 2)), FOLLOWING[1]: np.zeros(4)},
            "going_on/actions has shape \\[3, 2\\], not \\[4, 2\\]",
        ),
    ],
)
def test_clients_of_another_horizon_are_refused(server, sent, why):
    with Policy(server.url.replace("http", "ws"), 60, 60) as client:
        with pytest.raises(ServerError, match=f"422: {why}"):
            client.ask({"image": picture(0), "prompt": TEXT} | sent, 2)
        same = {"prediction_horizon": 4, "execution_horizon": 4, "control_hz": 5.0}
        assert client.ask({"image": picture(0), "prompt": TEXT} | same, 2).shape == (4, 2)


@pytest.mark.parametrize("rate", ["fast", -5, 0, float("inf"), True, [5]])
def test_what_is_no_rate_is_refused_where_none_is_known(rate):
    reader = Reader((32, 48), 1, 1, (), "crop", Limits(), horizon=HORIZON)
    reader._check_horizons({"control_hz": 10})
    with pytest.raises(Refused, match="control_hz .* it must be a positive number"):
        reader._check_horizons({"control_hz": rate})


def test_adapters_act_by_the_same_rule(policy):
    def ask(asked, step):
        return asked.select_action({"image": picture(step), "task": TEXT})

    asked = LeRobotPolicy(policy)  # as the run says
    first, second = (np.asarray(policy.predict_action(picture(t), TEXT)) for t in (0, 2))
    np.testing.assert_allclose([ask(asked, t) for t in range(3)], [*first[:2], second[0]], 1e-5)
    how = Execution(execute=2, delay=1)
    asked = LeRobotPolicy(policy, how=how)
    left = np.concatenate([first[2:], np.zeros((2, 2))])
    guided = policy.predict_action(picture(2), TEXT, going_on=(left, how.weights(HORIZON)))
    expected = [*first[:3], np.asarray(guided)[1]]
    np.testing.assert_allclose([ask(asked, t) for t in range(4)], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="execute=5 must be from 1 to 4"):
        LeRobotPolicy(policy, how=Execution(execute=5))
    with pytest.raises(ValueError, match=r"going_on is of shapes \[3, 2\] and \[4\]"):
        policy.predict(picture(0), TEXT, going_on=(np.zeros((3, 2)), np.zeros(4)))
