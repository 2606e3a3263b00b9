"""Heads of chunks in PyTorch say what they say in JAX, in the units of the data, of the same
noise."""

import json

import jax
import numpy as np
import pytest
import tiny
import tiny_policy
from ml_collections import ConfigDict

from data_pipelines.normalise import Normaliser
from experiments import base
from lapa_jax.interop import hf, hf_heads, torch_code
from lapa_jax.policy import heads
from lapa_jax.policy.heads.fast import TOKENS
from lapa_jax.policy.state import STATISTICS
from lapa_jax.runs import loaded
from lapa_jax.runs.sources import StandIn
from lapa_jax.stages.policy import TOKENIZER

pytestmark = [pytest.mark.usefixtures("quick_compile"), tiny.needs_torch]
HORIZON = 3
RNG = np.random.default_rng(0)
# The last dimension is constant.
CHUNKS = RNG.normal(0, 0.3, (60, HORIZON, 3)).cumsum(1) * [1, 20, 0] + 5
OWN = Normaliser.fit(RNG.normal(4, 2, (40, 2)) * [1, 0], "q01_q99")
FLOW = dict(dim=16, mlp_dim=24, steps=3)
BESIDE = FLOW | dict(activation="gelu", latent_weight=0.5)
OTHER = FLOW | dict(form="head", depth=1, conditioning="adaptive", convention="noise_is_zero")
ALIGN = {"latent": base.head("align", codebook_size=8, dim=12)}
Z = {"latent": base.head("tokens", codec="codes", vocab=8)}

# name → (targets, whether the state is seen)
CASES = {
    "z_then_fast": (
        {"latent": base.head("vectors"), "action": base.head("fast", vocab=400, scale=60.0)},
        True,
    ),
    "z_then_chunk": (Z | {"action": base.head("chunk", decoder="pool", decoder_dim=16)}, False),
    "flow_expert": ({"action": base.head("flow", **BESIDE)}, True),
    "flow_head": (ALIGN | {"action": base.head("flow", **OTHER)}, False),
}


class Sources(StandIn):
    def actions(self):
        return CHUNKS.reshape(-1, 3).astype(np.float32)

    def action_chunks(self, what_for):
        yield CHUNKS.astype(np.float32)


def run_of(out, targets, state):
    config = base.stage_defaults("action_finetuning")
    config.compute_dtype, config.data.image_size = "float32", (32, 48)
    config.data.action_horizon, config.code_length = HORIZON, 2
    config.model = base.policy_model(action_vocab=8)
    sizes = dict(text_vocab=320, text_length=24, dim=32, depth=2, heads=4, head_dim=8, mlp_dim=48)
    config.model.update(sizes | dict(unroll=1, init_std=0.3))
    config.model.front_end.stem_channels = (6,)
    config.model.targets, config.model.state.enabled = ConfigDict(targets), state
    assets = heads.make_assets(config, Sources(3)) | {TOKENIZER: tiny_policy.tokenizer()}
    if state:
        assets[STATISTICS] = OWN.to_json()
    return tiny_policy.write(out, config.lock(), assets)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_head_in_torch(name, tmp_path):
    """The export compares the chunks itself; the way back has every bit and file."""
    run, folder = run_of(tmp_path / "run", *CASES[name]), tmp_path / "hf"
    tiny.succeed("export", "--format", "hf", "--workdir", run, "--out", folder)
    checks = json.loads((folder / "parity.json").read_text())["checks"]
    assert {"text_logits", "actions"} <= checks.keys()
    model, made, old = hf.load(folder), hf.read(folder, None), loaded.load(run)
    jax.tree.map(np.testing.assert_array_equal, made.params, old.params)
    assert made.assets == old.assets
    kept = old.assets | hf_heads.files(old.stage)  # where it is saved again
    assert kept.items() <= model._beside.items()
    image, text = np.full((32, 48, 3), 99, np.uint8), tiny_policy.INSTRUCTIONS[0]
    stage, seen = old.stage, CASES[name][1]
    given = {"state": np.array([3.0, 0.0])} if seen else {}
    noise = {k: np.asarray(x) for k, x in stage.head.noise().items()} if stage.head.draws else None
    found = model.predict_action(image, text, noise=noise, **given)
    assert found.shape == (HORIZON, 3) and (found[:, 2] == 5).all()
    # What is not an answer is none.
    wrong = [({"state": np.zeros(2)}, "trained without the robot's state")]
    if seen:
        wrong = [({}, "sees the robot's state"), ({"state": np.zeros(3)}, r"shape \[3\] must be 2")]
        wrong.append(({"state": np.array([0, np.nan])}, "must be 2 finite numbers"))
    if noise:
        again = model.predict_action(image, text, seed=1, **given)
        assert np.abs(again - model.predict_action(image, text, seed=2, **given)).max() > 1e-3
        wrong.append((given | {"noise": noise | {"action": np.zeros((2, 3))}}, r"shape \[2, 3\]"))
        wrong.append((given | {"noise": {"force": np.zeros((2, 3))}}, "noise of .'force'."))
    for options, why in wrong:
        with pytest.raises(ValueError, match=why):
            model.predict_action(image, text, **options)
    model.model.embed_tokens.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="outputs are not finite"):
        model.predict_action(image, text, noise=noise, **given)
    if name == "z_then_fast":  # a token that may not follow
        with pytest.raises(ValueError, match="have no end|cannot follow|numbers instead of"):
            model._fast_tokens().actions(np.zeros((1, stage.head.num_slots), int))
        assert TOKENS in made.assets and (folder / hf_heads.FAST_GRAMMAR).exists()


def test_ofts_layers_in_torch(tmp_path):
    import torch
    from flax import nnx

    from lapa_jax.interop.mapping import to_theirs
    from lapa_jax.policy.heads.decoders import ResidualDecoder

    torch_code.write(tmp_path, {}, hf.FILES)
    module = torch_code.load(tmp_path, "modeling_heads.py")
    ours = ResidualDecoder(6, 8, 3, dtype=np.float32, rngs=nnx.Rngs(0))
    params = jax.tree.map(
        lambda x: np.asarray(x) + RNG.normal(size=x.shape).astype(np.float32),
        nnx.to_pure_dict(nnx.state(ours, nnx.Param)),
    )
    nnx.update(ours, params)
    rules = hf_heads.decoder_rules("decoder", "", "mlp")
    tensors = to_theirs(params, rules, {})
    theirs = module.ResidualDecoder(6, 8, 3)
    theirs.load_state_dict(
        {k.removeprefix("decoder."): torch.tensor(x.make()) for k, x in tensors.items()}
    )
    x = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    found = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, ours(x), atol=1e-5)
