"""The whole method on the tabletop world: action-free videos → latent actions → policies.

Asks: does a policy pretrained on latent actions of videos without action labels (LAPA) beat the
same policy trained only on the few labelled robot episodes (Scratch)? docs/evidence.md has answers.

    lapa demo                    # size=small: meant for two CPU cores
    lapa demo --size full        # meant for a GPU: eight blocks, all families, larger models
    lapa demo --size tiny        # a few minutes; everything runs, nothing is claimed

Paths are filled in by the demo, under its workdir.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.action_vla import tabletop as action_vla
from experiments.latent_vla import tabletop as latent_vla
from experiments.quantizer import tabletop as quantizer

# size → how long it takes, without installing: docs/performance.md.
SIZES = {
    "tiny": "2 minutes on two CPU cores, 5 where others use them",
    "small": "6 minutes on two quiet CPU cores of a server, 20 where others use them",
    "full": "not measured; meant for a GPU",
}
FULL_FAMILIES = (
    "reach",
    "block_to_block",
    "block_to_absolute",
    "block_to_block_relative",
    "block_to_relative",
    "separate_blocks",
)


def get_config(arg: str | None = None) -> ConfigDict:
    size = base.parse_arg(arg, size="small").size
    if size not in SIZES:
        raise ValueError(f"size={size!r} must be one of {tuple(SIZES)}")
    quick = f"quick={size == 'tiny'}"
    config = ConfigDict()
    config.size = size
    config.seed = 0

    config.video_episodes = {"tiny": 48, "small": 5000, "full": 20000}[size]  # per view
    config.video_views = ("human", "robot")  # action-free; the mixture is half and half
    config.labelled_episodes = {"tiny": 16, "small": 25, "full": 250}[size]
    config.heldout_episodes = {"tiny": 24, "small": 200, "full": 500}[size]
    config.rollout_episodes = {"tiny": 16, "small": 300, "full": 500}[size]  # per family and arm
    config.evaluation_pairs = 2000  # per view, of the held-out episodes
    config.expert_noise = 0.3  # of the action range, so that videos show more than one way

    # One instruction of a `reach` task has seven tokens, of any family eighteen.
    config.quantizer = quantizer.get_config(quick)
    config.latent_pretraining = latent_vla.get_config(quick)
    config.action_finetuning = action_vla.get_config(quick)
    config.scene = ConfigDict(config.action_finetuning.evaluation.env.to_dict())
    config.pretrained_lr_scale = 0.1 if size == "full" else 0.0  # of all but the new head
    for policy in (config.latent_pretraining, config.action_finetuning):
        policy.model.text_length = 20 if size == "full" else 10
    if size == "full":
        config.scene.update(families=FULL_FAMILIES, blocks=8, horizon=200)
        _full(config)
    return config


def _full(config: ConfigDict) -> None:
    config.quantizer.steps = 30_000
    config.quantizer.global_batch = 256
    config.quantizer.model.update(dim=384, mlp_dim=1024, heads=6, head_dim=64, codebook_size=16)
    config.quantizer.model.update(spatial_depth=4, temporal_depth=2, decoder_depth=4)
    config.quantizer.optimizer.peak_lr = 3e-4
    config.latent_pretraining.steps = 60_000
    config.latent_pretraining.model.targets.latent.vocab = config.quantizer.model.codebook_size
    config.quantizer.model.bottleneck.update(continuous_steps=5_000, ramp_steps=10_000)
    config.action_finetuning.steps = 5_000
    config.action_finetuning.model.targets.action.vocab = 64
    for policy in (config.latent_pretraining, config.action_finetuning):
        policy.global_batch = 256
        policy.model.update(dim=512, mlp_dim=1536, depth=8, heads=8, head_dim=64)
        policy.optimizer.peak_lr, policy.model.init_std = 3e-4, 0.02
    for stage in (config.quantizer, config.latent_pretraining, config.action_finetuning):
        stage.compute_dtype = "bfloat16"
        stage.checkpoint.every_steps = 1000
