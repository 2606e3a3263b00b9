"""All about what a latent action holds, in one report: the action, the scene, and the controls."""

from __future__ import annotations

from typing import Any

import numpy as np

from lapa_jax.diagnostics.code_probes import action_to_code
from lapa_jax.diagnostics.controls import controls_table, fit_motion_codes, random_codes
from lapa_jax.diagnostics.label_efficiency import label_efficiency
from lapa_jax.diagnostics.leakage import code_given_scene, scene_probe
from lapa_jax.diagnostics.probes import feature_sets, one_hot_codes


def content_report(
    z: np.ndarray,
    latents: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    actions: np.ndarray | None,
    episode: np.ndarray,
    codebook_size: int,
    *,
    seed: int,
) -> dict[str, Any]:
    """What N frame pairs, in order of time within each episode, show of their latent actions.

    `z` int (N, L), `latents` float (N, ...) before the bottleneck, `first` and `last` frames
    (N, H, W, C) with H, W divisible by 8, `actions` (N, A) over the window or None. Needs 2
    episodes, with actions 3. Keys: `code_given_scene`; `scene_probe`, None where fewer than 2
    episodes have 2 rows; `controls`; and with actions `label_efficiency` and `action_to_code`.
    """
    latents = np.asarray(latents).reshape(len(latents), -1)
    motion = fit_motion_codes(first, last, episode, codebook_size, seed=seed)
    unlearnt = {
        "random_codes": random_codes(*z.shape, codebook_size, seed=seed),
        "motion_kmeans": motion(first, last),
    }
    sets = feature_sets(
        z, codebook_size, seed=seed, first_frames=first, extra={"continuous_latent": latents}
    )
    controls = {name: one_hot_codes(value, codebook_size) for name, value in unlearnt.items()}
    compared = {name: sets[name] for name in ("latent_action", "continuous_latent", "first_frame")}
    compared |= controls

    report: dict[str, Any] = {
        "code_given_scene": code_given_scene(z, first, episode, codebook_size, seed=seed),
        "scene_probe": None,
    }
    _, counts = np.unique(episode, return_counts=True)
    if (counts >= 2).sum() >= 2:
        report["scene_probe"] = scene_probe(compared, episode, seed=seed)
    efficiency: dict[str, Any] = {}
    if actions is not None:
        report["label_efficiency"] = label_efficiency(sets, actions, episode, seed=seed)
        report["action_to_code"] = action_to_code(z, actions, episode, codebook_size, seed=seed)
        of_controls = label_efficiency(controls, actions, episode, seed=seed, counts=())
        efficiency = report["label_efficiency"] | of_controls
    report["controls"] = controls_table(
        {"latent_action": z} | unlearnt,
        codebook_size,
        efficiency={name: efficiency[name] for name in compared if name in efficiency},
        scene=report["scene_probe"] or {},
    )
    return report
