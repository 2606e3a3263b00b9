"""Expert episodes of the tabletop world as corpora."""

import jax
import numpy as np
import pytest
import simplejpeg

from data_pipelines.index import build_index, load_index
from data_pipelines.index.labels import LabelSet
from data_pipelines.loader.flow import FLOW, write_flow
from data_pipelines.loader.motion import frames_of
from data_pipelines.rlds import schema, shards, tfrecord, writer
from lapa_jax.envs import collect
from lapa_jax.envs.tabletop import SceneConfig, Tabletop
from lapa_jax.envs.tabletop.flow import Replay
from lapa_jax.envs.tabletop.state import TABLE_HALF

# One environment for all tests: every other costs a compilation. Some of its episodes fail.
ENV = Tabletop(SceneConfig(blocks=2, families=("reach",), horizon=7))

RESET, STEP, SUCCESS = jax.jit(ENV.reset), jax.jit(ENV.step), jax.jit(ENV.success)
RENDER = jax.jit(lambda state: ENV.render(state, 16, "robot"))


def run(out, **changes):
    values = dict(episodes=5, size=16, progress=False, batch_size=8)
    return collect.collect(ENV, out, **(values | changes))


def episodes(directory, split="train"):
    found = []
    for path in shards.find_shards(directory, split):
        for record in tfrecord.read_payloads(path):
            features = tfrecord.parse_example(record)
            found.append({key: value for key, value in _values(features, record)})
    return found


def _values(features, record):
    for key, feature in features.items():
        read = {"bytes": feature.byte_items, "float": feature.floats, "int64": feature.ints}
        yield key, read[feature.kind](record)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    out = tmp_path_factory.mktemp("tabletop")
    return out, run(out, views=("robot", "human"))


def test_states_are_recorded_where_they_are_asked_for(corpora, tmp_path):
    out, _ = corpora
    run(tmp_path, with_state=True, views=("robot", "moving_camera"))
    found, plain = episodes(tmp_path / "robot"), episodes(out / "robot")
    moving = episodes(tmp_path / "moving_camera")
    assert all(key not in one for one in plain for key in (schema.STATE, schema.CAMERA_MOTION))
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_array_equal(a[schema.ACTION], b[schema.ACTION])
        states, actions = (np.reshape(a[key], (-1, 2)) for key in (schema.STATE, schema.ACTION))
        moved = states[1:] - states[:-1]
        assert len(states) == len(a[schema.IMAGE]) and np.ptp(states) > 0
        assert np.abs(moved - actions[:-1]).max() < 0.1, "the effector goes where actions say"
        assert not np.any(a[schema.CAMERA_MOTION]), "of a camera that stands still"

    folder, key = tmp_path / "moving_camera", "observation/camera_motion"
    build_index(folder, action_key=key, progress=False)
    index = load_index(folder, action_key=key)
    moves = np.concatenate([np.reshape(one[schema.CAMERA_MOTION], (-1, 2)) for one in moving])
    np.testing.assert_array_equal(index.actions, moves)
    assert 0.001 < np.abs(moves).mean() < 0.02, "metres a step"


def test_views_show_the_same_trajectories(corpora):
    out, report = corpora
    robot, human = episodes(out / "robot"), episodes(out / "human")
    assert len(robot) == len(human) == report.episodes == 5
    assert report.frames == sum(len(episode[schema.IMAGE]) for episode in robot)
    for a, b in zip(robot, human, strict=True):
        for key in (schema.EPISODE_ID, schema.INSTRUCTION, schema.IS_LAST, schema.REWARD):
            assert list(a[key]) == list(b[key])
        np.testing.assert_array_equal(a[schema.ACTION], b[schema.ACTION])
        assert a[schema.IMAGE][0] != b[schema.IMAGE][0]
        assert (a[schema.METADATA + "camera"], b[schema.METADATA + "camera"]) == (
            [b"robot"],
            [b"human"],
        )
    assert len({episode[schema.EPISODE_ID][0] for episode in robot}) == 5


def test_episodes_made_again_give_their_flow(corpora, tmp_path):
    where = dict(split="train", sidecar_dir=tmp_path)
    build_index(corpora[0] / "robot", **where, progress=False)
    index = load_index(corpora[0] / "robot", **where)
    how = dict(window_seconds=0.2, cell=4, method="tabletop", workers=1, progress=False, **where)

    def write(shown):
        return write_flow(index.directory, exact=Replay(ENV, index, shown), **how)

    with pytest.raises(
        ValueError, match=r"'train-0-\d+' made again shows other pictures .*--blocks"
    ):
        write(lambda rows: np.zeros((len(rows), 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="--cell 5 must divide .*robot, \\(16, 16\\)"):
        write_flow(index.directory, exact=Replay(ENV, index, None), **how | {"cell": 5})
    with frames_of(index) as reader:
        write(lambda rows: reader.read(rows)[0])
    found = LabelSet.open(tmp_path, "0.2", index, FLOW)
    rows = np.arange(index.num_frames)
    flow = found.labels(rows).reshape(-1, 4, 4, 2)
    assert found.valid.all() and found.provenance["grid"] == [4, 4]
    ends = index.episode_start + index.episode_length - 1
    np.testing.assert_array_equal(flow[ends], 0.0)
    # The gantry's beams go with the tool: what moves most moves by the two actions, in pixels.
    metres = 2 * TABLE_HALF / 16
    for row in rows[index.episode_start[1] : index.episode_start[1] + 3]:
        dx, dy = index.actions[row : row + 2].sum(axis=0) / metres
        most = np.abs(flow[row]).max(axis=(0, 1))
        assert (most < np.abs([dx, dy]) + 0.02).all() and (most > 0.05 * np.abs([dx, dy])).all()


@pytest.mark.slow
def test_replaying_the_actions_gives_the_frames_and_success(corpora):
    out, _ = corpora
    for episode in episodes(out / "robot"):
        number = int(episode[schema.EPISODE_ID][0].decode().rsplit("-", 1)[1])
        key = ENV.training_keys(0, number + 1)[number]
        actions = episode[schema.ACTION].reshape(-1, 2)
        assert not actions[-1].any()
        state = RESET(key)
        for taken in actions[:-1]:
            assert not SUCCESS(state)
            state = STEP(state, taken)
        assert SUCCESS(state)
        assert episode[schema.REWARD].tolist() == [0.0] * (len(actions) - 1) + [1.0]
        assert episode[schema.IS_TERMINAL][-1] == 1
        image = simplejpeg.decode_jpeg(episode[schema.IMAGE][-1]).astype(int)
        exact = np.asarray(RENDER(state)).astype(int)
        assert np.abs(image - exact).mean() < 15  # JPEG
        texts = [ENV.instructions(state, p)[0] for p in ENV.phrasings("train")]
        assert episode[schema.INSTRUCTION][0].decode() in texts


def test_phrasings_vary(corpora):
    out, _ = corpora
    verbs = {
        episode[schema.INSTRUCTION][0].split(b" the ")[0] for episode in episodes(out / "robot")
    }
    assert len(verbs) > 1


def test_the_batch_size_changes_nothing(corpora, tmp_path):
    out, _ = corpora
    run(tmp_path, views=("robot",), batch_size=10)
    assert [e[schema.ACTION].tolist() for e in episodes(tmp_path / "robot")] == [
        e[schema.ACTION].tolist() for e in episodes(out / "robot")
    ]


def test_without_actions_and_language(tmp_path):
    run(tmp_path, with_actions=False, with_language=False, episodes=2)
    for episode in episodes(tmp_path / "robot"):
        assert schema.ACTION not in episode
        assert set(episode[schema.INSTRUCTION]) == {b""}
        assert not episode[schema.METADATA + "has_language"][0]


@pytest.mark.slow
def test_splits_of_equal_seed_differ(corpora, tmp_path):
    out, _ = corpora
    run(tmp_path, split="train", episodes=3)
    run(tmp_path, split="test", episodes=3)
    first = [episode[schema.IMAGE][0] for episode in episodes(tmp_path / "robot")]
    other = [episode[schema.IMAGE][0] for episode in episodes(tmp_path / "robot", "test")]
    assert first == [episode[schema.IMAGE][0] for episode in episodes(out / "robot")][:3]
    assert not set(first) & set(other)


def test_failures_are_dropped_and_counted_or_kept(tmp_path):
    dropped = run(tmp_path / "a", episodes=6, noise=0.3)
    assert dropped.dropped == sum(dropped.dropped_of_family.values()) > 0
    assert dropped.failed == 0
    found = episodes(tmp_path / "a" / "robot")
    assert len(found) == 6 and all(episode[schema.REWARD][-1] == 1 for episode in found)
    kept = run(tmp_path / "b", episodes=6, noise=0.3, only_successful=False)
    assert kept.dropped == 0 and kept.failed > 0
    found = episodes(tmp_path / "b" / "robot")
    failed = [episode for episode in found if not episode[schema.REWARD].any()]
    assert len(failed) == kept.failed
    assert all(
        len(episode[schema.IMAGE]) == 8 and not episode[schema.IS_TERMINAL].any()
        for episode in failed
    )


def test_an_expert_that_never_succeeds_leaves_nothing(tmp_path, monkeypatch):
    original = collect.collect_expert

    def failing(*args):
        found = original(*args)
        return found.replace(success=found.success & False)

    monkeypatch.setattr(collect, "collect_expert", failing)
    with pytest.raises(ValueError, match="only 0 of 72 expert episodes .*horizon=7"):
        run(tmp_path, episodes=2)
    assert not list((tmp_path / "robot").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes=0"),
        ({"views": ("robt",)}, "robt"),
        ({"views": ()}, "views"),
        ({"views": ("robot", "robot")}, "different"),
        ({"noise": 2.0}, "noise=2.0"),
        ({"size": 4}, "size=4"),
    ],
)
def test_wrong_arguments(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_finished_view_is_not_overwritten(corpora):
    out, _ = corpora
    before = (out / "robot" / writer.INFO_FILE).read_bytes()
    with pytest.raises(FileExistsError, match="robot already holds a finished split 'train'"):
        run(out, views=("recolour", "robot"))
    assert (out / "robot" / writer.INFO_FILE).read_bytes() == before
    assert not (out / "recolour" / writer.INFO_FILE).exists()
