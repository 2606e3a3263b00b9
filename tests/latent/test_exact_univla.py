"""UniVLA's latent action model computes what the public original does, as test_exact.py; its
released sizes are read, and those of ALAM and AdaWorld."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from zoo import ZOO, Golden

from experiments import base
from lapa_jax.interop import adaworld, alam, dinov2, exact, tensor_files, univla, vision
from lapa_jax.interop.mapping import Tensor, functional, to_theirs, unwrapped
from lapa_jax.latent import ARCHITECTURES
from lapa_jax.latent.exact.univla import Words, mask_of_frames, restarted
from lapa_jax.nn.module import flatten, unflatten
from lapa_jax.nn.vit import ViT, vit_settings
from lapa_jax.parallel import sharding
from lapa_jax.parallel.mesh import make_mesh

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compile"),
    tiny.needs_torch,
]


def univla_of(stage: int, **settings: Any) -> exact.Mapped:
    """Of a file whose DINOv2 and T5 are stand-ins that gave recorded features."""
    tensors = tensor_files.tensors(ZOO / f"univla_stage{stage}_tiny.ckpt")
    tensors = unwrapped(tensors, univla.ANCHOR, univla.ORIGINAL)
    for prefix in (univla.ENCODER, univla.TEXT):
        tensors = exact.without(tensors, prefix, "a stand-in")
    sizes = dict(patch_size=2, dim=20, depth=1, heads=1, head_dim=4, mlp_dim=4)
    settings |= univla.infer(tensors, heads=3) | {"encoder": vit_settings(**sizes)}
    return exact.mapped("univla", (8, 8), tensors, univla.rules, **settings)


@pytest.mark.parametrize("stage", [1, 2])
def test_univla(stage):
    given = univla_of(stage, tiled_mask=True, restart_every_steps=2)
    golden = Golden(f"univla_stage{stage}_tiny", given, univla, "lam.")
    features, seen = golden["in/dino_features"], None
    if stage == 1:
        seen = golden["in/text_mask"]
    variables = jax.tree.map(jnp.asarray, golden.variables)

    def loss(params, seen):
        def apply(method, **options):
            words = None if seen is None else Words(golden["in/text_hidden"], seen)
            return golden.model.apply(params, variables, method, features, words, **options)

        out, after = apply("of_features", train=True)
        restarted = [  # after the steps 0 and 1
            golden.model.after_update(params, after, step, jax.random.key(0)) for step in (0, 1)
        ]
        out |= {"after": after, "restarted": restarted, "tokens": apply("tokens")[0]}
        return out["loss"], out

    terms = {"mse": "mse_loss", "codebook_loss": "q_loss", "commitment_loss": "commit_loss"}
    if stage == 2:
        terms |= {f"{ours}_irrelevant": f"{terms[ours]}_uncontrol" for ours in list(terms)[1:]}
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-4, weight_decay=1e-2))
    of = golden.trained(loss, optimizer, terms, lr=1e-4, steps=[seen] * 10, at=seen)
    found = of(seen)
    golden.near(found["tokens"], "out/encoder")
    golden.near(found["recon"], "out/recon")
    np.testing.assert_array_equal(found["z"], golden["out/indices"])
    golden.losses(found["metrics"], terms | {"loss": "loss", "code_usage": "code_usage"})
    after = flatten(found["after"])
    np.testing.assert_array_equal(after["usage"], golden["state/usage"])

    before, usage, order = (
        golden[f"restart/{key}"] for key in ("codebook_before", "usage_before", "randperm")
    )
    with jax.disable_jit():
        np.testing.assert_array_equal(
            restarted(before, usage, order), golden["restart/codebook_after"]
        )
    ours = "irrelevant/codebook/codes" if stage == 2 else "codebook/codes"
    for step, state in enumerate(found["restarted"]):
        now, then = (
            flatten(tree[0] | tree[1]) for tree in (state, (golden.params, found["after"]))
        )
        changed = {path for path in now if (now[path] != then[path]).any()}
        counters = {path for path in now if path.endswith("usage") and "health" not in path}
        assert changed == ({ours, *counters} if step else set())
        dead = then[ours.replace("codebook/codes", "usage")] == 0
        assert (now[ours] == then[ours])[~dead].all()

    if stage == 1:
        pair = np.zeros((2, 1, 8, 8, 3), np.uint8)
        with pytest.raises(ValueError, match="reads what T5 makes of instructions"):
            jax.eval_shape(lambda params: golden.apply("read", *pair, params=params), given.params)
        # The original's mask is right where all have the same words.
        for i, one in enumerate(seen):
            latent = of(np.stack([one] * len(seen)))["tokens"][i : i + 1, 1, :4]
            latent = latent @ golden.params["to_latent"]["kernel"]
            latent += golden.params["to_latent"]["bias"]
            np.testing.assert_allclose(latent[0], golden["single/z_pre_quant"][i], atol=5e-5)
        right, theirs = (np.asarray(mask_of_frames(seen, 2, tiled=x)) for x in (False, True))
        np.testing.assert_array_equal(right, np.stack([seen, seen], axis=1))
        np.testing.assert_array_equal(theirs.reshape(-1, 5), np.concatenate([seen, seen]))
        return
    np.testing.assert_array_equal(after["irrelevant/usage"], golden["state/usage_uncontrol"])
    # The original divides by 32, of 16 codes.
    usage = 2 * golden["loss/code_usage_uncontrol"]
    np.testing.assert_allclose(found["metrics"]["code_usage_irrelevant"], usage)


RELEASED = json.loads((ZOO / "released_shapes.json").read_text())


def released(name: str) -> dict[str, Tensor]:
    """The tensors of a released file by shape."""
    found = {}
    for pattern, (count, shape) in RELEASED[name]["keys"].items():
        for i in range(count):
            one = Tensor(tuple(shape), np.dtype(np.float32), lambda: None)
            found[pattern.replace("#", str(i), 1)] = one
    return found


@pytest.mark.parametrize("name", ["adaworld", "alam", "univla_stage1", "univla_stage2"])
def test_released_sizes(name):
    architecture = name.partition("_")[0]
    module = {"adaworld": adaworld, "alam": alam, "univla": univla}[architecture]
    tensors = unwrapped(released(name), module.ANCHOR, module.ORIGINAL)
    encoder = {x.removeprefix(univla.ENCODER): t for x, t in tensors.items() if "dino_" in x}
    skipped = (univla.ENCODER, univla.TEXT, "loss_fn_lpips.", "physical_latent_action_up.")
    own = {x: tensor.shape for x, tensor in tensors.items() if not x.startswith(skipped)}
    settings = {"adaworld": adaworld.infer, "univla": lambda x: univla.infer(x, None)}
    settings = settings.get(architecture, lambda tensors: {})(tensors)
    kind, model = ARCHITECTURES[architecture]
    size = 256 if architecture == "adaworld" else 224
    shipped = base.quantizer_model(architecture)
    assert shipped.architecture == architecture
    given = {"image_size": (size, size), "compute_dtype": "float32"}
    given["num_frames"] = 3 if architecture == "alam" else 2
    config = kind(**(shipped.to_dict() | settings | given))
    if architecture == "univla":
        found = dinov2.infer_config(dinov2.from_hub(encoder))
        assert found == type(found)(**config.encoder.architecture())
        params = functional(ViT, found, dtype=jnp.float32).abstract()[0]
        theirs = to_theirs(params, dinov2.rules(found), vision.sizes(found))
        wanted = {x: tensor.shape for x, tensor in dinov2.from_hub(encoder).items()}
        assert {x: tensor.shape for x, tensor in theirs.items()} == wanted
    built = functional(model, config)
    params, variables = (flatten(x) for x in built.abstract())
    mesh = make_mesh(dict(data=1, fsdp=4, seq=1, tensor=2), jax.devices()[:8])
    sharding.tree_shardings(built.axes(), built.abstract()[0], mesh, "fsdp_tp")
    ours = {rule.ours for rule in module.rules(config) if hasattr(rule, "ours")}
    frozen = unflatten({x: value for x, value in variables.items() if x in ours})
    theirs = to_theirs(unflatten(params), module.rules(config), exact.genie_sizes(config), frozen)
    assert {x: tensor.shape for x, tensor in theirs.items()} == own
