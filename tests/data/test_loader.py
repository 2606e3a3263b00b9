"""What a step holds: eligible frames, hosts, resume, backends, bad images, fingerprints."""

import itertools

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import LENGTHS, data_config, spec, write_corpus

from data_pipelines.checks.verify import verify_corpus
from data_pipelines.index import build, build_index, load_index
from data_pipelines.index.labels import IMAGE_TOKENS, LabelSetWriter
from data_pipelines.loader import (
    BadExamplesError,
    FingerprintError,
    Loader,
    check_fingerprint,
    open_mixture,
)
from data_pipelines.loader import loader as loader_module
from data_pipelines.loader.frames import FrameReader
from data_pipelines.rlds import schema, tfrecord
from data_pipelines.rlds.schema import images_per_example

ALL = ("frames", "instruction", "action")
PROVENANCE = {
    "quantizer_hash": "q",
    "window_seconds": 0.4,
    "codebook_size": 8,
    "code_length": 2,
    "code_version": "1",
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora, (directories by name, episodes by name); nobody changes them."""
    root = tmp_path_factory.mktemp("corpora")
    episodes = {
        "a": write_corpus(root / "a", seed=1),
        "b": write_corpus(root / "b", seed=2, lengths=(8, 3, 12), shards=1, fps=10.0),
    }
    return {name: root / name for name in episodes}, episodes


def make(corpora, *, fields=ALL, global_batch=6, seed=3, host=0, num_hosts=1, **overrides):
    return Loader(
        data_config(corpora[0], **overrides),
        fields=fields,
        global_batch=global_batch,
        seed=seed,
        host=host,
        num_hosts=num_hosts,
    )


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)


def first_rows(loader, epochs=1):
    """{(corpus, episode, steps)} of one epoch of each corpus."""
    found = {}
    for corpus in loader.mixture.corpora:
        samples = np.arange(corpus.num_samples)
        rows = corpus.frame_rows(samples, np.zeros_like(samples), loader.seed)
        episode = corpus.index.episode_of_rows(rows[:, 0])
        steps = rows - corpus.index.episode_start[episode][:, None]
        found[corpus.name] = sorted(
            (int(e), *map(int, s)) for e, s in zip(episode, steps, strict=True)
        )
    return found


def test_batches_hold_what_describe_says(corpora):
    loader = make(corpora)
    for step in (0, 1, 10**9):
        batch = loader.batch(step)
        for i, where in enumerate(loader.describe(step)):
            number = int(where["episode_id"].removeprefix("episode-"))
            episode = corpora[1][where["corpus"]][number]
            assert where["episode"] == number and where["position"] == batch["position"][i]
            assert batch["instruction"][i] == episode.instruction == where["instruction"]
            first, second = where["steps"]
            assert second - first == {"a": 2, "b": 4}[where["corpus"]]
            np.testing.assert_array_equal(batch["action"][i], episode.actions[first])
            for frame, t in zip(batch["frames"][i], where["steps"], strict=True):
                np.testing.assert_array_equal(frame, simplejpeg.decode_jpeg(episode.images[t]))
            assert where["file"].endswith(f"of-0000{2 if where['corpus'] == 'a' else 1}")


@pytest.mark.parametrize(
    "overrides, fields, eligible",
    [
        ({}, ("frames",), lambda length: [(t, t + 2) for t in range(length - 2)]),
        (
            {"tail": "clamp"},
            ("frames",),
            lambda length: [(t, min(t + 2, length - 1)) for t in range(length)],
        ),
        (
            {"tail": "clamp"},
            ALL,
            lambda length: [(t, min(t + 2, length - 1)) for t in range(length - 1)],
        ),
        (
            {"num_frames": 3},
            ("frames",),
            lambda length: [(t, t + 2, t + 4) for t in range(length - 4)],
        ),
        (
            {"num_frames": 3, "tail": "clamp"},
            ("frames",),
            lambda length: [
                tuple(min(t + k, length - 1) for k in (0, 2, 4)) for t in range(length)
            ],
        ),
        (
            {"num_frames": 3, "history_seconds": 0.4},
            ("frames",),
            lambda length: [(t - 4, t - 2, t) for t in range(4, length)],
        ),
        (
            {"num_frames": 3, "history_seconds": 0.4},
            ALL,
            lambda length: [(t - 4, t - 2, t) for t in range(4, length - 1)],
        ),
        (
            {"num_frames": 3, "history_seconds": 0.4, "tail": "clamp"},
            ("frames",),
            lambda length: [tuple(max(t - k, 0) for k in (4, 2, 0)) for t in range(length)],
        ),
        ({"num_frames": 1}, ("frames",), lambda length: [(t,) for t in range(length)]),
        ({"num_frames": 1}, ALL, lambda length: [(t,) for t in range(length - 1)]),
    ],
)
def test_eligible_frames(corpora, overrides, fields, eligible):
    found = first_rows(make(corpora, fields=fields, **overrides))["a"]
    assert found == [
        (number, *steps) for number, length in enumerate(LENGTHS) for steps in eligible(length)
    ]


def test_smaller_fractions_are_part_of_larger_ones(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    write_corpus(tmp_path, lengths=[4] * 200)

    def episodes(fraction):
        loader = make(
            ({"a": tmp_path}, None), fields=("frames",), num_frames=1, a__fraction=fraction
        )
        return set(np.flatnonzero(loader.mixture.corpora[0].counts).tolist())

    tenth, third, whole = (episodes(f) for f in (0.1, 0.3, 1.0))
    assert tenth < third < whole and len(whole) == 200
    assert 10 <= len(tenth) <= 32 and 42 <= len(third) <= 80
    told = "of 200 episodes are drawn from (data.corpora.a.fraction)."
    assert f"'a': {len(tenth)} {told}" in caplog.text and caplog.text.count(told) == 2
    with pytest.raises(ValueError, match="data.corpora.a.fraction=0.0 must be"):
        episodes(0.0)


def test_filters_leave_episodes_out(tmp_path):
    """LENGTHS are 7, 4, 9, 1, 6, 5; half of the episodes get an instruction."""
    made = write_corpus(tmp_path, index=False, instruction="")
    with open(next(tmp_path.glob("*-00000-of-*")), "wb") as file:
        for episode in made[:3]:
            episode.instruction = "go"
            tfrecord.write_record(file, schema.encode_episode(episode, spec()))
    build_index(tmp_path, progress=False)

    def episodes(**options):
        loader = make(({"a": tmp_path}, None), fields=("frames",), num_frames=1, **options)
        return np.flatnonzero(loader.mixture.corpora[0].counts).tolist()

    assert episodes() == [0, 1, 2, 3, 4, 5]
    assert episodes(a__min_episode_steps=6) == [0, 2, 4]
    assert episodes(a__require_instruction=True) == [0, 1, 2]
    assert episodes(a__require_instruction=True, a__min_episode_steps=5) == [0, 2]
    with pytest.raises(ValueError, match="'a' .*longest of 9 steps. has no eligible frame"):
        episodes(a__min_episode_steps=10)
    with pytest.raises(ValueError, match="data.corpora.a.min_episode_steps=-1 must be"):
        episodes(a__min_episode_steps=-1)


def test_per_video_draws_one_frame_of_each_video_anew_each_epoch(corpora):
    loader = make(corpora, sampling="per_video")
    corpus = loader.mixture.corpora[0]
    assert corpus.num_samples == sum(length > 2 for length in LENGTHS)
    epochs = np.arange(400)
    longest = corpus.frame_rows(np.full(400, 2), epochs, 0)[:, 0] - corpus.index.episode_start[2]
    assert (np.bincount(longest, minlength=7) > 30).all() and longest.max() == 6


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 10**10))
def test_hosts_share_one_global_batch(corpora, num_hosts, step):
    whole = make(corpora, global_batch=12).batch(step)
    parts = [
        make(corpora, global_batch=12, host=host, num_hosts=num_hosts).batch(step)
        for host in range(num_hosts)
    ]
    assert_same(whole, {key: np.concatenate([part[key] for part in parts]) for key in whole})


@pytest.mark.parametrize("num_threads, prefetch, start", [(1, 1, 0), (2, 4, 5), (7, 3, 10**8)])
def test_iterating_equals_random_access(corpora, num_threads, prefetch, start):
    loader = make(corpora, global_batch=40, num_threads=num_threads, prefetch_batches=prefetch)
    batches = loader.iterate(start)
    for step, batch in enumerate(itertools.islice(batches, 4), start):
        assert_same(batch, loader.batch(step))
    batches.close()


def test_prefetch_is_bounded_and_close_stops_the_threads(corpora, monkeypatch):
    import threading

    loader = make(corpora, prefetch_batches=2)
    planned = []
    original = loader.plan
    monkeypatch.setattr(loader, "plan", lambda step: planned.append(step) or original(step))
    batches = loader.iterate()
    next(batches), next(batches)
    batches.close()
    assert max(planned) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lapa-data")]


@pytest.mark.slow
def test_backends_agree(corpora):
    threads, tensorflow = make(corpora), make(corpora, decode="tf")
    batches = tensorflow.iterate(2)
    for step in (2, 3, 4):
        one, two, three = threads.batch(step), next(batches), tensorflow.batch(step)
        assert_same(one, two)
        assert_same(one, three)
    batches.close()


def test_prepare_makes_the_batch(corpora):
    loader = Loader(
        data_config(corpora[0]),
        fields=("instruction",),
        global_batch=4,
        seed=0,
        prepare=lambda batch: {"n": np.array([len(t) for t in batch["instruction"]])},
    )
    batches = loader.iterate()
    assert next(batches)["n"].shape == (4,)
    batches.close()


def label(directory, skip=()):
    index = load_index(directory)
    writer = LabelSetWriter(directory, "z", index, provenance=PROVENANCE)
    for shard in range(len(index.shards)):
        rows = np.arange(index.num_frames)[index.rows_of_shard(shard)]
        labels = np.stack([rows % 8, rows // 8 % 8], axis=1)
        labels[np.isin(rows, skip)] = -1
        writer.write_shard(shard, labels)
    writer.finish()


def test_latent_actions_come_with_their_frames(tmp_path):
    write_corpus(tmp_path)
    label(tmp_path, skip=[0, 3, 31])
    loader = make(
        ({"a": tmp_path}, None), fields=("latent_action", "frames"), num_frames=1, a__label_set="z"
    )
    corpus = loader.mixture.corpora[0]
    assert corpus.num_samples == sum(LENGTHS) - 3
    batch = loader.batch(7)
    assert batch["latent_action"].dtype == np.int32
    for i, where in enumerate(loader.describe(7)):
        row = corpus.index.episode_start[where["episode"]] + where["steps"][0]
        assert row not in (0, 3, 31)
        assert batch["latent_action"][i].tolist() == [row % 8, row // 8 % 8]
    with pytest.raises(ValueError, match="window_seconds is 1.0, but label set 'z' was made with"):
        make(
            ({"a": tmp_path}, None),
            fields=("latent_action", "frames"),
            a__label_set="z",
            a__window_seconds=1.0,
        )


def test_vectors_come_with_their_frames(tmp_path):
    values = np.random.default_rng(0).normal(size=(sum(LENGTHS), 2, 5)).astype(np.float32)
    values[[3, 31]] = np.nan
    provenance = {key: value for key, value in PROVENANCE.items() if key != "codebook_size"}
    for name in "ab":
        write_corpus(tmp_path / name, shards=1)
        index = load_index(tmp_path / name)
        made = provenance | {"width": 5}
        writer = LabelSetWriter(index.sidecar_dir, "v", index, provenance=made)
        writer.write_shard(0, values)
        writer.finish()
    label(tmp_path / "b")
    found = {name: tmp_path / name for name in "ab"}, None
    keys = dict(num_frames=1, fields=("latent_action",), a__label_set="v")
    loader = make(found, b__label_set="v", **keys)
    assert loader.mixture.sizes == [sum(LENGTHS) - 2] * 2
    index = loader.mixture.corpora[0].index
    for step in range(10):
        got = loader.batch(step)["latent_action"]
        assert got.dtype == np.float32 and got.shape == (6, 2, 5)
        where = loader.describe(step)
        rows = [index.episode_start[one["episode"]] + one["steps"][0] for one in where]
        np.testing.assert_array_equal(got, values[rows])
    with pytest.raises(ValueError, match="agree in codebook_size: a has None, b has 8"):
        make(found, b__label_set="z", **keys)


HISTORY = {"num_frames": 2, "history_seconds": 0.4}  # two steps
CHAINS = {"num_frames": 2, "chain_pairs": 2} | {f"{name}__window_seconds": 0.4 for name in "ab"}


def test_actions_and_labels_are_those_of_the_frame_where_a_history_ends(tmp_path):
    episodes = write_corpus(tmp_path)
    label(tmp_path, skip=[5, 31])
    fields = ("latent_action", "frames", "action", "instruction")
    for sampling in ("per_frame", "per_video"):
        loader = make(
            ({"a": tmp_path}, None), fields=fields, a__label_set="z", sampling=sampling, **HISTORY
        )
        index = loader.mixture.corpora[0].index
        assert not np.isin(
            loader.mixture.corpora[0].frame_rows(np.arange(3), np.zeros(3, int), 0)[:, 1], [5, 31]
        ).any()
        for step in range(5):
            batch = loader.batch(step)
            for i, where in enumerate(loader.describe(step)):
                (before, now), episode = where["steps"], episodes[where["episode"]]
                assert now - before == 2 and now < episode.num_steps - 1
                row = index.episode_start[where["episode"]] + now
                assert row not in (5, 31)
                assert batch["latent_action"][i].tolist() == [row % 8, row // 8 % 8]
                np.testing.assert_array_equal(batch["action"][i], episode.actions[now])
                assert batch["instruction"][i] == episode.instruction
                for frame, t in zip(batch["frames"][i], where["steps"], strict=True):
                    np.testing.assert_array_equal(frame, simplejpeg.decode_jpeg(episode.images[t]))


# ---------------------------------------------------------------- cameras and image tokens

CAMERAS = ("wrist", "left/front")


def two_corpora(tmp_path):
    """Of three cameras each, with image tokens; row 13 of the first has none by its last camera."""
    for name, lengths in (("a", LENGTHS), ("b", (9, 8))):
        write_corpus(tmp_path / name, lengths=lengths, cameras=CAMERAS, seed=len(lengths))
        for number, camera in enumerate(("image", *CAMERAS)):
            tokenize(
                tmp_path / name, camera, number, skip=[13] if (name, number) == ("a", 2) else []
            )
    return {name: tmp_path / name for name in "ab"}, None


def tokenize(directory, camera, number, *, skip=(), name="vq", tokenizer="t"):
    index = load_index(directory, image_key=camera)
    provenance = {
        "tokenizer_hash": tokenizer,
        "image_size": [16, 16],
        "codebook_size": 10_000,
        "tokens_per_frame": 2,
        "code_version": "1",
    }
    writer = LabelSetWriter(directory, name, index, provenance=provenance, kind=IMAGE_TOKENS)
    for shard in range(len(index.shards)):
        rows = np.arange(index.num_frames)[index.rows_of_shard(shard)]
        tokens = np.stack([rows, np.full_like(rows, number)], axis=1)
        tokens[np.isin(rows, skip)] = -1
        writer.write_shard(shard, tokens)
    writer.finish()


def cameras(*names):
    names = names or CAMERAS
    return {f"{corpus}__extra_image_keys": names for corpus in "ab"} | {
        f"{corpus}__image_token_set": "vq" for corpus in "ab"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decode", "frames"), [("threads", HISTORY), ("tf", HISTORY), ("threads", CHAINS)]
)
def test_images_are_by_time_then_by_camera(tmp_path, decode, frames):
    found = two_corpora(tmp_path)
    data = frames | cameras()
    loader = make(found, fields=("frames", "image_tokens", "action"), decode=decode, **data)
    batches = loader.iterate(3)
    for step in (3, 4):
        batch = next(batches)
        assert_same(batch, loader.batch(step))
        assert batch["frames"].shape == (6, 6, 16, 16, 3)
        assert batch["image_tokens"].shape == (6, 6, 2)
        assert batch["image_tokens"].dtype == np.int32
        for i, where in enumerate(loader.describe(step)):
            indexes = [
                load_index(found[0][where["corpus"]], image_key=camera)
                for camera in ("image", *CAMERAS)
            ]
            rows = indexes[0].episode_start[where["episode"]] + np.array(where["steps"])
            assert where["corpus"] != "a" or 13 not in rows, "it has no tokens"
            expected = [(row, camera) for row in rows for camera in range(3)]
            assert batch["image_tokens"][i].tolist() == [list(pair) for pair in expected]
            readers = [FrameReader(index, (16, 16)) for index in indexes]
            frames = [readers[camera].read(np.array([row]))[0][0] for row, camera in expected]
            np.testing.assert_array_equal(batch["frames"][i], frames)
    batches.close()
    config = data_config(found[0], **data)
    assert loader.num_images == images_per_example(config) == 6
    config.corpora.b.extra_image_keys = ()
    with pytest.raises(ValueError, match=r"extra_image_keys give \[1, 3\] cameras"):
        images_per_example(config)


def test_tokens_alone_read_no_image(tmp_path, monkeypatch):
    found = two_corpora(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loader_module.ShardFiles, "pread", None)  # raises where it is called
        patch.setattr(loader_module.frames, "decode_jpeg", None)
        loader = make(found, fields=("image_tokens",), size=4096, **HISTORY, **cameras())
        batches = loader.iterate()
        got = [next(batches) for _ in range(4)]
        batches.close()
    assert got[0].keys() == {"position", "image_tokens"}
    # The last camera of corpus a lacks row 13: neither it nor row 15, two steps later, is drawn.
    corpus = loader.mixture.corpora[0]
    samples = np.arange(corpus.num_samples)
    rows = corpus.frame_rows(samples, np.zeros_like(samples), 0)[:, 1]
    starts = np.cumsum((0, *LENGTHS))[:-1]
    whole = [s + t for s, n in zip(starts, LENGTHS, strict=True) for t in range(2, n)]
    assert rows.tolist() == [row for row in whole if row not in (13, 15)]
    assert loader.mixture.corpora[1].kept is None, "all of its frames have tokens"


def test_a_bad_image_of_any_camera_replaces_the_example(tmp_path):
    write_corpus(tmp_path, lengths=(40,) * 3, shards=1, size=64, cameras=("wrist",))
    options = dict(num_frames=1, size=64, max_bad_fraction=0.5, a__extra_image_keys=("wrist",))
    loader = make(({"a": tmp_path}, None), fields=("frames", "action"), **options)
    damage(tmp_path, [13], image_key="wrist")
    index = loader.mixture.corpora[0].index
    for step in range(20):
        batch = loader.batch(step)
        rows = [np.flatnonzero((index.actions == action).all(1))[0] for action in batch["action"]]
        assert 13 not in rows
    (bad,) = loader.bad_examples
    assert (bad.image_key, bad.episode, bad.step) == ("wrist", 0, 13)
    told = [where["bad"] for step in range(20) for where in loader.describe(step)]
    assert ["the bytes changed since the index was built (checksum)"] in told


@pytest.mark.slow
def test_cameras_and_tokens_that_do_not_fit(tmp_path):
    found = two_corpora(tmp_path)

    def refused(fields=("image_tokens",), **overrides):
        with pytest.raises((ValueError, FileNotFoundError)) as info:
            make(found, fields=fields, **cameras() | HISTORY | overrides)
        return str(info.value)

    assert "data.corpora.a.image_token_set is empty" in refused(a__image_token_set="")
    assert "--what image_tokens" in refused(b__image_token_set="other")
    told = refused(b__extra_image_keys=("wrist",))
    assert "agree in the number of cameras: a has 3, b has 2" in told
    clip = dict(history_seconds=0.0, a__window_seconds=0.4)
    told = refused(**clip, **{f"{name}__extra_image_keys": ("wrist", "image") for name in "ab"})
    assert "a.extra_image_keys is ['wrist', 'image']: of a clip each camera is to be" in told
    assert "data.history_seconds=-1.0 must be a number in [0, 1e4]" in refused(history_seconds=-1.0)
    told = refused(history_seconds=8.0)
    assert "'a': the history (data.history_seconds 8.0 at 5 fps = 40 steps) is longer than" in told
    tokenize(found[0]["b"], "wrist", 1, name="new", tokenizer="u")
    for camera in ("image", "left/front"):
        tokenize(found[0]["b"], camera, 1, name="new")
    told = refused(b__image_token_set="new")
    assert "tokenizer_hash of image tokens: a/image has t" in told and "b/wrist has u" in told
    shard = load_index(found[0]["a"]).shards[0].name
    build_index(found[0]["a"], image_key="wrist", exclude=[(shard, 1)], progress=False)
    told = refused(fields=("frames",))
    assert "'image' and 'wrist' differ in shard_of_episode: index both with the same" in told


@pytest.mark.parametrize(
    "overrides, options, message",
    [
        (
            {"a__window_seconds": 9.0},
            {},
            r"'a': the window \(data.corpora.a.window_seconds 9.0 at 5 fps"
            r" = 45 steps\) is longer.* longest has 9 steps",
        ),
        (
            {"a__window_seconds": 0.01},
            {},
            "window_seconds 0.01 is shorter than half a step at 5 fps",
        ),
        ({"tail": "wrap"}, {}, "data.tail='wrap' must be one of"),
        ({"decode": "gpu"}, {}, "data.decode='gpu' must be one of"),
        ({"num_threads": 0}, {}, "data.num_threads=0 must be"),
        ({"a__weight": 0.0}, {}, "weight"),
        (
            {"image_size": (32, 32)},
            {},
            "'a' has images of 16x16.*data.image_size.*lapa data convert",
        ),
        ({}, {"fields": ("latent_action",)}, "data.corpora.a.label_set is empty.*lapa label"),
        ({}, {"fields": ("colour",)}, "fields are"),
        (
            {},
            {"global_batch": 6, "num_hosts": 4},
            "global_batch 6 is not a multiple of the 4 hosts",
        ),
        ({}, {"global_batch": 6, "num_hosts": 2, "host": 2}, "host is 2"),
    ],
)
def test_mistakes_are_named(corpora, overrides, options, message):
    with pytest.raises(ValueError, match=message):
        make(corpora, **options, **overrides)


@pytest.mark.real_data
def test_bridge_data_need_fps(tmp_path, real_data):
    bridge = real_data / "bridge_dataset/1.0.0"
    build_index(bridge, sidecar_dir=tmp_path / "s", image_key="image_0", progress=False)
    config = {"a__image_key": "image_0", "a__sidecar_dir": str(tmp_path / "s"), "size": 64}
    with pytest.raises(ValueError, match="fps of corpus 'a' is unknown.*set data.corpora.a.fps"):
        make(({"a": bridge}, None), **config)
    batch = make(({"a": bridge}, None), a__fps=5.0, **config).batch(0)
    assert batch["frames"].shape == (6, 2, 64, 64, 3) and batch["action"].shape == (6, 7)


def test_missing_actions_and_instructions_are_named(tmp_path):
    write_corpus(tmp_path / "video", actions=0, instruction="")
    for field, key in (("action", "action_key"), ("instruction", "instruction_key")):
        with pytest.raises(ValueError, match=f"'v' has no .*data.corpora.v.{key}"):
            make(({"v": tmp_path / "video"}, None), fields=(field,))


# ---------------------------------------------------------------- bad images


def damage(directory, rows, image_key="image"):
    """Flips a byte in the middle of some frames, as a failing disk would after indexing."""
    index = load_index(directory, image_key=image_key)
    for row in rows:
        path = index.shards[index.shard_of_episode[index.episode_of_rows(row)]]
        data = bytearray(path.read_bytes())
        data[int(index.frame_offset[row]) + int(index.frame_length[row]) // 2] ^= 0x55
        path.write_bytes(data)


def write_undecodable(directory, rows, **options):
    """A valid corpus whose frames `rows` are no JPEGs that decode."""
    import shards

    original, count = shards.simplejpeg.encode_jpeg, itertools.count()

    def encode(*args):
        jpeg = original(*args)
        return jpeg[: len(jpeg) // 2] if next(count) in rows else jpeg

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.simplejpeg, "encode_jpeg", encode)
        write_corpus(directory, **options)


@pytest.mark.parametrize("decode", ["threads", "tf"])
def test_bad_images_are_replaced_in_order_counted_and_named(tmp_path, decode):
    write_undecodable(tmp_path, {5}, lengths=(10, 10))
    loader = make(
        ({"a": tmp_path}, None),
        num_frames=1,
        fields=("frames", "action"),
        decode=decode,
        max_bad_fraction=0.2,
    )
    batches = loader.iterate()
    got = [next(batches) for _ in range(6)]
    batches.close()
    samples = [
        where["steps"][0] + 10 * where["episode"]
        for step in range(7)
        for where in loader.describe(step)
    ]
    corpus = loader.mixture.corpora[0]
    expected = [samples[i + 1] if row == 5 else row for i, row in enumerate(samples[:36])]
    assert 5 in samples[:36] and 5 not in expected
    np.testing.assert_array_equal(
        np.concatenate([batch["action"] for batch in got]), corpus.index.actions[expected]
    )
    frames, bad = FrameReader(corpus.index, (16, 16)).read(np.array(expected))
    assert not bad
    np.testing.assert_array_equal(np.concatenate([batch["frames"] for batch in got])[:, 0], frames)
    (report,) = loader.bad_examples
    assert (report.corpus, report.episode, report.step) == ("a", 0, 5)
    assert report.count >= 1 and "not decodable" in report.reason
    assert any(where["bad"] for step in range(4) for where in loader.describe(step))


def test_damaged_images_have_one_verdict(tmp_path):
    """One bit of each was flipped before indexing: both backends, verify and who walks over a
    corpus agree on which are bad, and on the pixels of the others."""
    import shards

    rng, original = np.random.default_rng(3), shards.simplejpeg.encode_jpeg

    def encode(*args):
        jpeg = np.frombuffer(original(*args), np.uint8).copy()
        jpeg[rng.integers(180, len(jpeg))] ^= 1 << rng.integers(8)  # behind the size
        return jpeg.tobytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.simplejpeg, "encode_jpeg", encode)
        episodes = write_corpus(tmp_path, lengths=(30, 30), shards=1)
    bad = set()
    for row, jpeg in enumerate(jpeg for episode in episodes for jpeg in episode.images):
        try:
            simplejpeg.decode_jpeg(jpeg)
        except ValueError:
            bad.add(row)
    assert 5 < len(bad) < 40
    frames, found = FrameReader(load_index(tmp_path), (16, 16)).read(np.arange(60))
    assert found.keys() == bad
    faults = verify_corpus(tmp_path, progress=False, workers=1).faults
    assert sum(int(fault.reason.split()[0]) for fault in faults) == len(bad)
    actions = load_index(tmp_path).actions
    keys = dict(num_frames=1, fields=("frames", "action"), max_bad_fraction=1.0)
    loaders = [make(({"a": tmp_path}, None), decode=d, **keys) for d in ("threads", "tf")]
    streams = [loader.iterate() for loader in loaders]
    for _ in range(15):
        one, two = map(next, streams)
        assert_same(one, two)
        rows = [np.flatnonzero((actions == a).all(1))[0] for a in one["action"]]
        np.testing.assert_array_equal(one["frames"][:, 0], frames[rows])
        assert bad.isdisjoint(rows)
    for stream, loader in zip(streams, loaders, strict=True):
        stream.close()
        assert {b.step + 30 * b.episode for b in loader.bad_examples} <= bad


def test_too_many_bad_images_stop_the_run(tmp_path):
    write_undecodable(tmp_path, set(range(0, 60, 4)), lengths=(30, 30))
    loader = make(
        ({"a": tmp_path}, None),
        num_frames=1,
        fields=("frames",),
        global_batch=20,
        max_bad_fraction=0.05,
    )
    with pytest.raises(BadExamplesError, match="data.max_bad_fraction allows 0.05.*corpus='a'"):
        for batch in loader.iterate():
            assert batch["position"][0] < 1000
    strict = make(({"a": tmp_path}, None), num_frames=1, fields=("frames",), max_bad_fraction=0.0)
    with pytest.raises(BadExamplesError, match="allows 0"):
        for step in range(10):
            strict.batch(step)


def test_frames_that_changed_after_indexing_are_never_used(tmp_path):
    write_corpus(tmp_path, lengths=(40,) * 3, shards=1, size=64)
    loader = make(
        ({"a": tmp_path}, None),
        num_frames=1,
        fields=("frames", "action"),
        size=64,
        max_bad_fraction=0.5,
    )
    index = loader.mixture.corpora[0].index
    clean, _ = FrameReader(index, (64, 64)).read(np.arange(120))
    damage(tmp_path, [13, 77])
    for step in range(20):
        batch = loader.batch(step)
        for frame, action in zip(batch["frames"][:, 0], batch["action"], strict=True):
            (row,) = np.flatnonzero((index.actions == action).all(1))
            np.testing.assert_array_equal(frame, clean[row])
    assert sorted(bad.step + 40 * bad.episode for bad in loader.bad_examples) == [13, 77]
    assert all("checksum" in bad.reason for bad in loader.bad_examples)


@pytest.mark.parametrize("decode", ["threads", "tf"])
def test_an_image_of_another_size_is_a_mistake_not_bad_data(tmp_path, decode):
    import shards

    sizes = itertools.count()
    original = shards.picture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            shards, "picture", lambda rng, size: original(rng, 8 if next(sizes) == 4 else size)
        )
        patch.setattr(shards.schema, "check_episode", lambda *_: None)
        patch.setattr(build, "_other_sizes", lambda *_: {})  # as indexes of earlier code
        write_corpus(tmp_path, lengths=(6,), shards=1)
    loader = make(({"a": tmp_path}, None), num_frames=1, fields=("frames",), decode=decode)
    with pytest.raises(ValueError, match="'a' has images of 8x8.*data.image_size"):
        for _ in loader.iterate():
            pass


def test_few_open_files_serve_many_shards(tmp_path, monkeypatch):
    from data_pipelines.loader import frames

    write_corpus(tmp_path, lengths=(3,) * 12, shards=12)
    loader = make(({"a": tmp_path}, None), global_batch=48, num_threads=4)
    expected = loader.batch(0)
    loader._files = frames.ShardFiles(limit=2)
    batches = loader.iterate()
    assert_same(next(batches), expected)
    batches.close()
    assert len(loader._files._open) <= 2 + 4


# ---------------------------------------------------------------- fingerprints


def test_fingerprint_tells_what_changed(corpora):
    import json

    saved = make(corpora).fingerprint(10)
    assert len(json.dumps(saved)) < 1000
    check_fingerprint(json.loads(json.dumps(saved)), make(corpora, num_threads=1).fingerprint(10))
    for options, field in (
        ({"seed": 4}, "seed 3 → 4"),
        ({"global_batch": 12}, "global_batch"),
        ({"a__weight": 2.0}, "mixture_hash"),
        ({"a__fraction": 0.9}, "mixture_hash"),
        ({"a__min_episode_steps": 1}, "mixture_hash"),
        ({"a__require_instruction": True}, "mixture_hash"),
        ({"tail": "clamp"}, "mixture"),
        ({"history_seconds": 0.4}, "mixture_hash"),
        ({"b__window_seconds": 0.2}, "mixture_hash"),
    ):
        with pytest.raises(FingerprintError, match=field):
            check_fingerprint(saved, make(corpora, **options).fingerprint(10))


def test_fingerprint_follows_the_contents_of_the_shards(tmp_path):
    found = []
    for seed in (0, 1):
        write_corpus(tmp_path / str(seed), seed=seed)
        loader = make(({"a": tmp_path / str(seed)}, None))
        found.append(loader.fingerprint(0))
    with pytest.raises(FingerprintError, match="index_hash.*contents of the shards"):
        check_fingerprint(*found)


def test_open_mixture_is_public(corpora):
    assert loader_module.open_mixture is open_mixture
    assert [corpus.name for corpus in open_mixture(data_config(corpora[0])).corpora] == ["a", "b"]
