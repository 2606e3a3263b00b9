"""What clients get: openpi's protocol, OpenVLA's, pictures, batches, metrics."""

import json
from concurrent.futures import ThreadPoolExecutor

import jax
import json_numpy
import numpy as np
import pytest
import requests
import simplejpeg
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from served import TOKEN, b64, picture, png, serving
from tiny_policy import make_policy

from data_pipelines.convert.looks import fit_image
from lapa_jax.nn import int8
from lapa_jax.runs import loaded
from lapa_jax.serving.engine import worthwhile

TEXT = "push the red block"


@pytest.fixture
def robot(action_server):
    client = WebsocketClientPolicy("127.0.0.1", action_server.port)
    yield client
    client._ws.close()


def act(server, image, instruction=TEXT, **more) -> requests.Response:
    return requests.post(
        f"{server.url}/act", json={"image": image, "instruction": instruction} | more
    )


def test_openpi_client(robot, action_policy):
    """The client of PyPI, unchanged; an error is one of its, and the connection goes on."""
    metadata = robot.get_server_metadata()
    assert metadata["image_size"] == [32, 48] and metadata["chunk"] == 1
    assert metadata["control_hz"] == 5
    for seed in range(3):
        found = robot.infer({"observation/image": picture(seed), "prompt": TEXT})
        expected = action_policy.predict_action(picture(seed), TEXT)
        np.testing.assert_array_equal(found["actions"], expected[None])
        assert found["actions"].dtype == np.float32
        assert found["server_timing"]["infer_ms"] > 0
    with pytest.raises(RuntimeError, match="422: image: .* the keys sent are \\['imgae', 'prompt'"):
        robot.infer({"imgae": picture(0), "prompt": TEXT})
    sent = {"observation/state": np.zeros(7), "observation/wrist_image": picture(9)}
    found = robot.infer(sent | {"observation/image": picture(2), "prompt": TEXT})
    np.testing.assert_array_equal(found["actions"], expected[None])
    assert metadata["observation"]["images"] == [["image", "observation/image", "full_image"]]


def test_openpi_action_chunk_broker(robot, action_policy):
    from openpi_client.action_chunk_broker import ActionChunkBroker

    broker = ActionChunkBroker(robot, action_horizon=robot.get_server_metadata()["chunk"])
    for seed in range(2):
        found = broker.infer({"image": picture(seed), "prompt": TEXT})["actions"]
        np.testing.assert_array_equal(found, action_policy.predict_action(picture(seed), TEXT))


def test_forms_of_an_image(action_server, action_policy):
    """All of them are the same image, and give the same action."""
    image = picture(1)
    expected = np.asarray(action_policy.predict_action(image, TEXT))
    forms = [b64(png(image)), "data:image/png;base64," + b64(png(image)), image.tolist()]
    for form in forms:
        found = act(action_server, form)
        assert found.status_code == 200, found.text
        np.testing.assert_array_equal(np.array(found.json()["a"], np.float32), expected)
    jpeg = simplejpeg.encode_jpeg(image, 80)
    found = act(action_server, b64(jpeg)).json()["a"]
    expected = action_policy.predict_action(simplejpeg.decode_jpeg(jpeg), TEXT)
    np.testing.assert_array_equal(np.array(found, np.float32), expected)


@pytest.mark.parametrize("encoded", [False, True])
def test_openvla_client(action_server, action_policy, encoded):
    """json-numpy is answered with json-numpy: the action alone."""
    text = json_numpy.dumps({"image": picture(2), "instruction": TEXT, "unnorm_key": "bridge_orig"})
    found = requests.post(
        f"{action_server.url}/act", data=json.dumps({"encoded": text}) if encoded else text
    )
    action = json_numpy.loads(json.loads(found.text) if encoded else found.text)
    np.testing.assert_array_equal(action, action_policy.predict_action(picture(2), TEXT))
    assert action.dtype == np.float32


def test_openvla_oft_client(action_server, action_policy):
    """A list of the actions to come, each an array."""
    sent = {"full_image": picture(2), "wrist_image": picture(3), "state": np.zeros(8)}
    text = json_numpy.dumps(sent | {"instruction": TEXT})
    found = json_numpy.loads(requests.post(f"{action_server.url}/act", data=text).text)
    assert isinstance(found, list) and found[0].dtype == np.float32
    np.testing.assert_array_equal(found, [action_policy.predict_action(picture(2), TEXT)])


def test_other_sizes_are_resized_as_training_data(action_server, action_policy):
    image = picture(3, (90, 100))
    expected = action_policy.predict_action(fit_image(image, (32, 48), "crop"), TEXT)
    found = act(action_server, b64(png(image))).json()["a"]
    np.testing.assert_array_equal(np.array(found, np.float32), expected)


def test_batches_answer_as_single_requests(action_server, action_policy):
    """Whoever else asks at the same time, and however a batch is padded."""
    texts = [f"{TEXT} {i}" for i in range(24)]
    with ThreadPoolExecutor(12) as pool:
        found = list(
            pool.map(lambda i: act(action_server, b64(png(picture(i))), texts[i]).json(), range(24))
        )
    assert max(one["timing"]["batch"] for one in found) > 1
    expected = [action_policy.predict_action(picture(i), texts[i]) for i in range(24)]
    assert len(np.unique(expected, axis=0)) > 3
    np.testing.assert_array_equal(np.array([one["a"] for one in found], np.float32), expected)


def test_batches_are_not_mostly_padding():
    taken = [worthwhile(waiting, (1, 2, 4, 8, 16)) for waiting in range(20)]
    assert taken == [0, 1, 2, 3, 4, 4, 6, 7, 8, 8, 8, 8, 12, 13, 14, 15, 16, 16, 16, 16]
    assert worthwhile(1, (4, 16)) == 1  # nothing smaller is compiled


@pytest.mark.slow
def test_latent_policies_tell_z_and_its_probabilities(latent_server, latent_run, quantizer_run):
    policy, image = loaded.load_policy(latent_run), picture(4)
    z = np.asarray(policy.predict_latent(image, TEXT))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    message = {"image": b64(png(image)), "instruction": TEXT, "picture": True}
    found = requests.post(f"{latent_server.url}/act", json=message, headers=headers).json()
    np.testing.assert_array_equal(found["z"], z)
    probabilities = np.array(found["probabilities"])
    assert probabilities.shape == (3, 8)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(-1), z)

    client = WebsocketClientPolicy("127.0.0.1", latent_server.port, api_key=TOKEN)
    answer = client.infer({"image": image, "prompt": TEXT, "picture": True})
    client._ws.close()
    np.testing.assert_array_equal(answer["z"], z)
    np.testing.assert_allclose(answer["probabilities"], probabilities, rtol=1e-5)
    quantizer = loaded.load_quantizer(quantizer_run)
    later = np.asarray(quantizer.decode(image[None], z[None]))[0]
    expected = (np.clip(later, 0, 1) * 255).round()
    assert np.ptp(answer["picture"]) > 0
    np.testing.assert_allclose(answer["picture"], expected, atol=1)
    assert found["picture"] == "data:image/png;base64," + b64(png(answer["picture"]))


@pytest.mark.slow
def test_several_images(quick_compile, tmp_path):
    """Of a policy that sees a history: a list, or one array of more dimensions."""
    run = make_policy(tmp_path / "run", "action", num_frames=2)
    images = np.stack([picture(5), picture(6)])
    expected = np.asarray(loaded.load_policy(run).predict_action(images, TEXT))
    with serving(run, "--batch_sizes", 1) as server:
        for form in ([b64(png(image)) for image in images], images.tolist()):
            found = act(server, form)
            assert found.status_code == 200, found.text
            np.testing.assert_array_equal(np.array(found.json()["a"], np.float32), expected)
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        for form in (images, list(images), [png(image) for image in images]):
            found = client.infer({"image": form, "prompt": TEXT})["actions"][0]
            np.testing.assert_array_equal(found, expected)
        with pytest.raises(RuntimeError, match="422: 1 images, and the policy takes 2"):
            client.infer({"image": images[0], "prompt": TEXT})
        client._ws.close()


def test_metadata(action_server, action_run):
    found = requests.get(f"{action_server.url}/metadata").json()
    assert found["action"] | {"centres": None} == {
        "dim": 2,
        "names": ["x", "grip"],
        "units": None,
        "tokens": "bins",
        "num_bins": [5, 3],
        "low": pytest.approx([-0.8, -0.2]),
        "high": pytest.approx([0.8, 1.0]),
        "centres": None,
    }
    assert [len(row) for row in found["action"]["centres"]] == [5, 3]
    run = loaded.load_policy(action_run)
    assert found["checkpoint"]["params_hash"] == run.params_hash
    assert found["checkpoint"]["provenance"] == run.provenance
    assert found["checkpoint"]["weights"] == "trained"


def test_weights_in_int8_answer_like_those_that_trained(action_run, action_policy):
    """Prefill has many rows, a step of eight prompts few: both are those of the rounded floats."""
    rounded = loaded.load_policy(action_run, weights="int8")
    assert rounded.params["backbone"]["layers"]["000"]["mlp"]["up"]["kernel"].dtype == np.int8
    assert (rounded.weights, rounded.params_hash) == ("int8", action_policy.params_hash)
    images = np.stack([picture(i) for i in range(8)])[:, None]
    given = action_policy.variables, action_policy.stage.prompts([TEXT] * 8), images
    of_floats = jax.jit(action_policy.stage.predict)
    found = jax.jit(rounded.stage.predict)(rounded.params, *given)
    expected = of_floats(int8.as_floats(rounded.params, np.float32), *given)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-3)
    # Weights are random: answers are often near another.
    assert (found.ids == of_floats(action_policy.params, *given).ids).mean() > 0.8
    with pytest.raises(ValueError, match=r"weights='int4' must be one of \['trained', 'int8'\]"):
        loaded.load_policy(action_run, weights="int4")


def test_metrics_and_health(action_server):
    def count(status: int) -> float:
        text = requests.get(f"{action_server.url}/metrics").text
        start = f'lapa_requests_total{{protocol="rest",status="{status}"}} '
        return sum(float(x.split()[-1]) for x in text.splitlines() if x.startswith(start))

    before = count(200), count(422)
    assert act(action_server, picture(0).tolist()).status_code == 200
    assert act(action_server, 7).status_code == 422
    assert (count(200), count(422)) == (before[0] + 1, before[1] + 1)
    assert requests.get(f"{action_server.url}/healthz").json() == {"status": "ok"}
