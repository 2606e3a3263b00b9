"""The short form of `make torture`: one stage, every kind of fault."""

import pytest
import torture
from faults import FAULTS


@pytest.mark.slow
def test_every_fault_and_the_same_run(tiny_data, tmp_path):
    folder = tmp_path / "torture"
    result = torture.torture("latent_pretraining", tiny_data, folder, faults=10, seed=15, mean=30)
    assert result["faults"].keys() == FAULTS.keys()
    assert sum(result["faults"].values()) == 10
    assert result["restarts"] == 10 and result["checkpoints_compared"] >= 2
    damaged = [entry for entry in result["record"] if entry.get("file")]
    told = result["damage_found"] + len(result["damage_harmless"]) + result["damage_unread"]
    assert 1 <= len(damaged) == told
