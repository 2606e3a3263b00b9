"""All about what a latent action holds, in one report: the action, the scene, and the controls."""

from typing import Any

import numpy as np

from lapa_jax.diagnostics.code_probes import action_to_code
from lapa_jax.diagnostics.controls import controls_table, fit_motion_codes, random_codes
from lapa_jax.diagnostics.label_efficiency import label_efficiency
from lapa_jax.diagnostics.leakage import code_given_scene, scene_probe
from lapa_jax.diagnostics.probes import feature_sets, one_hot_codes
from lapa_jax.diagnostics.sample import Sample


def content_report(sample: Sample, *, seed: int = 0) -> dict[str, Any]:
    """What frame pairs show of their latent actions; H and W are at least 8.

    Needs 2 episodes, with actions 3. Keys: with codes `code_given_scene`; `scene_probe`, None where
    fewer than 2 episodes have 2 rows; `controls`; with actions `label_efficiency`, and with both
    `action_to_code`.
    """
    z, first, last, actions = sample.z, sample.first, sample.last, sample.actions
    episode, codebook_size = sample.episode, sample.codebook_size
    motion = fit_motion_codes(first, last, episode, codebook_size, seed=seed)
    codes = {} if z is None else {"latent_action": z}
    codes["random_codes"] = random_codes(*sample.latents.shape[:2], codebook_size, seed=seed)
    codes["motion_kmeans"] = motion(first, last)
    one_hot = {name: one_hot_codes(value, codebook_size) for name, value in codes.items()}
    latent_action = one_hot.pop("latent_action", sample.flat_latents)
    sets = feature_sets(latent_action, seed=seed, first_frames=first, extra=sample.extra)
    compared = {k: sets[k] for k in ("latent_action", *sample.extra, "first_frame")} | one_hot

    report: dict[str, Any] = {"scene_probe": None}
    if z is not None:
        report["code_given_scene"] = code_given_scene(z, first, episode, codebook_size, seed=seed)
    _, counts = np.unique(episode, return_counts=True)
    if (counts >= 2).sum() >= 2:
        report["scene_probe"] = scene_probe(compared, episode, seed=seed)
    efficiency: dict[str, Any] = {}
    if actions is not None:
        report["label_efficiency"] = label_efficiency(sets, actions, episode, seed=seed)
        if z is not None:
            report["action_to_code"] = action_to_code(z, actions, episode, codebook_size, seed=seed)
        of_controls = label_efficiency(one_hot, actions, episode, seed=seed, counts=())
        efficiency = report["label_efficiency"] | of_controls
    report["controls"] = controls_table(
        codes,
        codebook_size,
        efficiency={name: efficiency[name] for name in compared if name in efficiency},
        scene=report["scene_probe"] or {},
    )
    return report
