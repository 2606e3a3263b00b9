"""A training step of jasmine, in float32: of its latent action model, or of its world model.

    git clone https://github.com/p-doom/jasmine
    --case FILE@jasmine@PYTHON         # with jax, flax, optax, einops and dm-pix
    --second model=dynamics --second dim=128

Loss and optimizer are those of its train_lam.py, at its default shape and with its metrics, and of
its train_dynamics_maskgit.py, whose frozen tokenizer has two layers of 96, as ours, and whose
pictures and their metrics, as the logging of both, are left out, as is the reset of unused codes,
which costs nothing. Work: pairs of neighbours in a clip, of the world model frames that are drawn.
"""

from collections.abc import Callable
from typing import Any

PRECISION = dict(use_flash_attention=False, dropout=0.0)


def prepare(
    global_batch: int = 36,
    num_frames: int = 16,
    model: str = "lam",
    dim: int = 128,
    depth: int = 6,
    mlp_dim: int = 384,
) -> Callable[[], None]:
    """`dim`, `depth`, `mlp_dim`: of the world model."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from jasmine.utils.nn import AxialTransformer

    AxialTransformer._pytree__is_pytree = False  # else flax 0.12 refuses its list of blocks
    shape = (global_batch, num_frames, 64, 64, 3)
    frames = jax.random.randint(jax.random.key(0), shape, 0, 256).astype(jnp.uint8)
    common = dict(param_dtype=jnp.float32, dtype=jnp.float32, rngs=nnx.Rngs(0), **PRECISION)
    made, loss_of = _lam(common) if model == "lam" else _dynamics(common, dim, depth, mlp_dim)
    optimizer = nnx.ModelAndOptimizer(made, optax.adamw(3e-5, b1=0.9, b2=0.9, weight_decay=1e-4))

    @nnx.jit(donate_argnums=0)
    def update(optimizer, frames):
        (loss, metrics), gradients = nnx.value_and_grad(loss_of, has_aux=True)(
            optimizer.model, frames
        )
        optimizer.update(gradients)
        return loss, metrics

    def step() -> None:
        jax.block_until_ready(update(optimizer, frames))

    step.work = global_batch * (num_frames - 1)
    return step


def _lam(common: dict[str, Any]) -> tuple[Any, Callable[..., Any]]:
    import dm_pix
    import jax
    import jax.numpy as jnp
    from jasmine.models.lam import LatentActionModel

    made = LatentActionModel(
        **dict(in_dim=3, model_dim=512, ffn_dim=2048, latent_dim=32, num_latents=6),
        **dict(patch_size=16, num_blocks=4, num_heads=8, codebook_dropout=0.0),
        **common,
    )

    def loss_of(model, frames):
        truth = frames.astype(jnp.float32) / 255.0
        out = model({"videos": truth}, True)
        later, drawn = truth[:, 1:], out["recon"].astype(jnp.float32)
        error = jnp.square(later - drawn).mean()
        codes = jnp.square(jax.lax.stop_gradient(out["emb"]) - out["z"]).mean()
        commitment = jnp.square(out["emb"] - jax.lax.stop_gradient(out["z"])).mean()
        pictures = [x.clip(0, 1).reshape(-1, 64, 64, 3) for x in (later, drawn)]
        metrics = dm_pix.psnr(*pictures).mean(), dm_pix.ssim(*pictures).mean()
        return error + codes + 0.25 * commitment, metrics

    return made, loss_of


def _dynamics(
    common: dict[str, Any], dim: int, depth: int, mlp_dim: int
) -> tuple[Any, Callable[..., Any]]:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from jasmine.models.dynamics import DynamicsMaskGIT
    from jasmine.models.tokenizer import TokenizerVQVAE

    class World(nnx.Module):
        def __init__(self):
            self.tokenizer = TokenizerVQVAE(
                **dict(in_dim=3, model_dim=96, ffn_dim=192, latent_dim=16, num_latents=1024),
                **dict(patch_size=8, num_blocks=2, num_heads=4, codebook_dropout=0.0),
                **common,
            )
            self.actions = nnx.Embed(8, 32, rngs=nnx.Rngs(1))
            self.dynamics = DynamicsMaskGIT(
                **dict(model_dim=dim, ffn_dim=mlp_dim, num_latents=1024, latent_action_dim=32),
                **dict(num_blocks=depth, num_heads=dim // 32, mask_limit=0.5, decode=False),
                **common,
            )

    def loss_of(model, frames):
        truth = frames.astype(jnp.float32) / 255.0
        tokens = jax.lax.stop_gradient(model.tokenizer.vq_encode(truth, False)["indices"])
        codes = jnp.zeros((len(frames), frames.shape[1] - 1, 1), jnp.int32)
        given = {"video_tokens": tokens, "latent_actions": model.actions(codes)}
        logits, mask = model.dynamics(given | {"mask_rng": jax.random.PRNGKey(0)})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return (mask * losses).sum() / mask.sum(), (logits.argmax(-1) == tokens).mean()

    return World(), loss_of
