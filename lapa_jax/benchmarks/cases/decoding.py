"""Decoding of one row by a policy with random weights, greedy. Work: its tokens, the first of which
takes the short prompt along. `weights`: "trained", or "int8" in builds that know it."""

import argparse
from collections.abc import Callable

import jax

from lapa_jax import stages
from lapa_jax.benchmarks import policy

PROMPT = 16  # the last tokens of a row of `lapa bench policy`


def prepare(
    size: str = "200m", tokens: int = 16, dtype: str = "float32", weights: str = "trained"
) -> Callable[[], None]:
    given = dict(dtype=dtype, unroll=0, attention="auto", remat="", batch=0, microbatches=0)
    config = policy.policy_config(size, argparse.Namespace(**given))
    if hasattr(policy, "workload"):  # 12b9842 and before
        model = policy.Functional(lambda rngs: policy.VLA(config, rngs=rngs, stacked=False))
        rows = policy.rows(config, 1)
    else:
        stage = stages.build(config, policy.stand_in_assets(config))
        model = stage.apart(weights).model
        rows = policy.rows(stage, 1)
    params, variables = jax.jit(model.init)(jax.random.key(0))
    end = policy.ROW - policy.TARGETS
    names = ("tokens", "modality", "segments")
    prompt = {key: rows[key][:, end - PROMPT : end] for key in names}

    def step() -> None:
        of = (model, params, variables, prompt, None, "latent", tokens)
        jax.block_until_ready(policy.decoding.decode(*of))

    step.work = tokens
    return step
