"""Every objective by what `lapa train` and `lapa label` call: its data, its run when it is read
again, and its labels, which policies take."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import simplejpeg
from helpers import WAYS, moving_squares
from ml_collections import ConfigDict

from data_pipelines.index import load_index
from data_pipelines.index.build import build_index
from data_pipelines.index.labels import LabelSet
from data_pipelines.loader import DataSettings, open_mixture
from data_pipelines.loader.flow import write_flow
from data_pipelines.rlds.schema import Episode, EpisodeSpec
from data_pipelines.rlds.writer import RldsWriter
from experiments import base
from experiments.latent_vla import tabletop as latent_vla
from experiments.quantizer import tabletop
from experiments.teacher import tabletop as teachers
from lapa_jax import stages
from lapa_jax.interop.imported import Imported, write_run
from lapa_jax.latent.objectives import OBJECTIVES
from lapa_jax.nn.module import Functional
from lapa_jax.runs import label, start
from lapa_jax.runs.loaded import load
from lapa_jax.runs.usable import open_loader, usable
from lapa_jax.train import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile", "drawn_once")]

EPISODES, FPS = 24, 10.0
TINY = dict(dim=16, mlp_dim=16, heads=1, head_dim=16, decoder_depth=1, unroll=1, patch_size=4)
VIT = dict(dim=16, mlp_dim=16, heads=1, head_dim=16, depth=1, patch_size=4, grid=(4, 4))
OTHERS = {"vae", "adaworld", "stage1", "stage2"}  # the last two of "two_stage"
TRAINED = {"adaworld"}  # for some steps; the others are saved as they begin
SETTINGS = {
    "flow": {"grid": (4, 4)},
    "latent_targets": {"action_dim": 2},
    "stage2": {"stage": 2},
}
CORPUS = {
    "cross_view": {"extra_image_keys": ("mirror",)},
    "proprio": {"state_key": "observation/state"},
}


@pytest.fixture(scope="module")
def drawn_once():
    """First parameters without the program that draws them, and labels by one device."""

    def init(self, key):
        del key
        with jax.ensure_compile_time_eval():
            return real(self, jax.random.key(0))

    real, devices = Functional.init, jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Functional, "init", init)
        patch.setattr(
            label, "jax", SimpleNamespace(**vars(jax) | {"local_devices": lambda: devices})
        )
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """FOLDER with a corpus FOLDER/squares of clips of three frames by two cameras, and runs of a
    teacher, FOLDER/teacher, and of a first stage, FOLDER/first."""
    folder = tmp_path_factory.mktemp("by_verbs")
    frames, direction = moving_squares(jax.random.key(7), EPISODES, frames=3)
    frames, ways = np.asarray(frames * 255).round().astype(np.uint8), WAYS[direction]
    spec = EpisodeSpec((16, 16, 3), 2, True, "squares", FPS, state_dim=2, cameras=("mirror",))
    with RldsWriter(folder / "squares", name="squares", spec=spec) as writer:
        for number, (clip, way) in enumerate(zip(frames, ways, strict=True)):
            actions = np.repeat(way[None], 3, axis=0).astype(np.float32)
            episode = Episode(
                images=_jpegs(clip),
                views={"mirror": _jpegs(clip[:, :, ::-1])},
                actions=actions,
                states=actions * np.arange(3, dtype=np.float32)[:, None],
                instruction=("push it", "move")[number % 2],
                episode_id=str(number),
            )
            writer.write(episode)
    for camera in ("mirror", "image"):
        build_index(folder / "squares", image_key=camera, progress=False)
    flow = dict(window_seconds=0.1, cell=4, image_key="image", method="dis", progress=False)
    write_flow(folder / "squares", estimate=_motion, workers=1, **flow)
    config = teachers.get_config(f"quick=True,data={folder},views=squares")
    config.data.image_size = (16, 16)
    config.model.update(**VIT)
    save(folder / "teacher", config)
    save(folder / "first", config_of("stage1", folder))
    return folder


def save(workdir, config):
    """As a run that has not trained yet."""
    params, variables = stages.build(config, {}).init(jax.random.key(0))
    run = Imported(config, params, variables=variables)
    write_run(workdir, run, source="here", source_format="none")


def _jpegs(images):
    quality = dict(quality=100, colorsubsampling="444")
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(image), **quality) for image in images]


def _motion(first, last):
    """Of the square, in pixels to the right and down."""
    (there, before) = (np.argwhere(x.max(-1) > 60).mean(0) for x in (last, first))
    square = first.max(-1, keepdims=True) > 60
    return (square * (there - before)[::-1]).astype(np.float32)


def config_of(name: str, data) -> ConfigDict:
    objective = {"stage1": "two_stage", "stage2": "two_stage+features", "adaworld": "pixels"}
    given = f"quick=True,data={data},objective={objective.get(name, name)}"
    config = tabletop.get_config(given)
    corpus = dict(window_seconds=1 / FPS, action_fraction=0.75, **CORPUS.get(name, {}))
    config.data.corpora = {"squares": base.corpus(f"{data}/squares", image_key="image", **corpus)}
    config.data.update(image_size=(16, 16), prefetch_batches=2)
    config.steps, config.optimizer.warmup_steps, config.global_batch = 4, 1, 8
    config.checkpoint.every_steps = config.log_every_steps = config.steps
    if name == "adaworld":
        sizes = dict(dim=16, heads=1, encoder_depth=1, decoder_depth=1, patch_size=4, quant_dim=4)
        config.model = base.quantizer_model("adaworld", **sizes)
        return config
    config.model.update(TINY)
    if name == "rotation":
        config.model.quant_dim = 4
    objective = config.model.objective
    objective.update(SETTINGS.get(name, {}))
    if "horizon" in objective:
        objective.horizon = config.data.action_horizon = 1
    if name == "stage2":
        objective.weights = f"{data}/first"
    taught = objective.get("of", objective)
    if "teacher" in taught:
        taught.weights = f"{data}/teacher"
        taught.teacher.update(VIT)
    return config


@pytest.mark.parametrize("name", sorted({*OBJECTIVES, *OTHERS} - {"two_stage"}))
def test_its_run_is_read_again_and_labels_what_policies_take(name, data):
    config, workdir = config_of(name, data), data / name
    if name in TRAINED:
        assert train(config, workdir)
    else:
        stage = stages.build(config, {})
        with open_loader(config, DataSettings.of(config.data), stage, 8) as loader:
            batch = loader.batch(0)
        for column, spec in stage.batch_spec().items():
            found = batch[column]
            assert (found.shape, found.dtype) == (spec.shape, spec.dtype), column
        save(workdir, config)
    run = load(workdir)
    index = load_index(data / "squares", split="train", image_key="image")
    corpus = {"path": str(index.directory), "split": "train", "image_key": "image"}
    counts = label.label(run, name, corpus | {"sidecar_dir": ""})
    assert counts == {"rows": 3 * EPISODES, "labelled": 2 * EPISODES, "bad": 0}
    labels = LabelSet.open(index.sidecar_dir, name, index)
    z = labels.labels(np.flatnonzero(labels.valid))
    model, codes = run.stage.model_config, run.stage.model_config.has_codes
    assert codes == (name not in ("vae", "adaworld"))
    assert z.shape == (2 * EPISODES, model.code_length, *([] if codes else [model.quant_dim]))

    given = f"quick=True,data={data},views=squares,label_set={name},codebook={8 * codes}"
    policy = latent_vla.get_config(f"{given},code_length={model.code_length}")
    policy.data.image_size = (16, 16)
    mixture = open_mixture(policy.data, stages.get(policy.stage).fields_of(policy))
    assert usable(mixture, start.stage_for(policy, mixture)) is mixture
