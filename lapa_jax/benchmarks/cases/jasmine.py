"""A training step of the latent action model of jasmine, at its default shape but in float32.

    git clone https://github.com/p-doom/jasmine
    --case FILE@jasmine@PYTHON         # with jax, flax, optax, einops and dm-pix

Loss, metrics and optimizer are those of its train_lam.py; the reset of unused codes, which costs
nothing, and the logging are left out. Work: pairs of neighbours in its clips of 16 frames.
"""

from collections.abc import Callable


def prepare(global_batch: int = 36, num_frames: int = 16) -> Callable[[], None]:
    import dm_pix
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from jasmine.models.lam import LatentActionModel
    from jasmine.utils.nn import AxialTransformer

    AxialTransformer._pytree__is_pytree = False  # else flax 0.12 refuses its list of blocks
    model = LatentActionModel(
        **dict(in_dim=3, model_dim=512, ffn_dim=2048, latent_dim=32, num_latents=6),
        **dict(patch_size=16, num_blocks=4, num_heads=8, dropout=0.0, codebook_dropout=0.0),
        **dict(param_dtype=jnp.float32, dtype=jnp.float32, use_flash_attention=False),
        rngs=nnx.Rngs(0),
    )
    optimizer = nnx.ModelAndOptimizer(model, optax.adamw(3e-5, b1=0.9, b2=0.9, weight_decay=1e-4))
    shape = (global_batch, num_frames, 64, 64, 3)
    frames = jax.random.randint(jax.random.key(0), shape, 0, 256).astype(jnp.uint8)

    @nnx.jit(donate_argnums=0)
    def update(optimizer, frames):
        def loss_of(model):
            truth = frames.astype(jnp.float32) / 255.0
            out = model({"videos": truth}, True)
            later, drawn = truth[:, 1:], out["recon"].astype(jnp.float32)
            error = jnp.square(later - drawn).mean()
            codes = jnp.square(jax.lax.stop_gradient(out["emb"]) - out["z"]).mean()
            commitment = jnp.square(out["emb"] - jax.lax.stop_gradient(out["z"])).mean()
            pictures = [x.clip(0, 1).reshape(-1, 64, 64, 3) for x in (later, drawn)]
            metrics = dm_pix.psnr(*pictures).mean(), dm_pix.ssim(*pictures).mean()
            return error + codes + 0.25 * commitment, metrics

        (loss, metrics), gradients = nnx.value_and_grad(loss_of, has_aux=True)(optimizer.model)
        optimizer.update(gradients)
        return loss, metrics

    def step() -> None:
        jax.block_until_ready(update(optimizer, frames))

    step.work = global_batch * (num_frames - 1)
    return step
