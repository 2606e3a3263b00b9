"""The data sets of Open X-Embodiment: under which keys they keep image, action and instruction.

Facts of RLDS data sets as they are published, from: the feature lists of the TFDS catalogue
(`tensorflow_datasets/robotics/rtx`), the data set configurations of Octo and OpenVLA
(`oxe_dataset_configs.py`, `oxe/configs.py`: cameras; their transforms: which parts of a dictionary
are the action), and the control frequencies of the release sheet as LeRobot's `openx/configs.yaml`
and RDT's `dataset_control_freq.json` repeat them. `fps` is 0 where these disagree or say nothing.

Actions are named, never changed: signs, units and gripper conventions stay those of the data set,
and `terminate_episode` is not part of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines.rlds import schema, shards
from data_pipelines.rlds.declared import declaration_of


@dataclasses.dataclass(frozen=True)
class Keys:
    """Where a data set keeps what.

    fps: steps per second, 0 where unknown. image: the camera that sees the scene (a wrist camera
    where there is no other), below steps/observation/. others: further cameras. action,
    instruction: below steps/, in the forms of `fields.py`; "" where the data set has none.
    """

    fps: float = 0.0
    image: str = "image"
    action: str = "action"
    instruction: str = "language_instruction"
    others: tuple[str, ...] = ()


_NATURAL = "observation/natural_language_instruction"
_MOVE = "action/world_vector,action/rotation_delta"
_CLOSE = f"{_MOVE},action/gripper_closedness_action"
_OPEN = f"{_MOVE},action/open_gripper"
_RLDS = "_converted_externally_to_rlds"


def _rtx(fps: float, image: str, action: str, *others: str) -> Keys:
    """A data set of the first release: actions in a dictionary, text among the observations."""
    return Keys(fps, image, action, _NATURAL, others)


def _step(fps: float, image: str = "image", *others: str, action: str = "action") -> Keys:
    """A data set whose steps have `action` and `language_instruction`."""
    return Keys(fps, image, action, others=others)


DATA_SETS: dict[str, Keys] = {
    # of the first release, in the order of its sheet
    "fractal20220817_data": _rtx(3, "image", _CLOSE),  # RT-1
    "kuka": _rtx(10, "image", _CLOSE),
    "bridge": _rtx(5, "image", _OPEN),
    "taco_play": _rtx(15, "rgb_static", "action/rel_actions_world", "rgb_gripper"),
    "jaco_play": _rtx(
        10, "image", "action/world_vector,action/gripper_closedness_action", "image_wrist"
    ),
    "berkeley_cable_routing": _rtx(
        10, "image", _MOVE, "top_image", "wrist45_image", "wrist225_image"
    ),
    "roboturk": _rtx(10, "front_rgb", _CLOSE),
    "nyu_door_opening_surprising_effectiveness": _rtx(3, "image", _CLOSE),
    "viola": _rtx(20, "agentview_rgb", _CLOSE, "eye_in_hand_rgb"),
    "berkeley_autolab_ur5": _rtx(5, "image", _CLOSE, "hand_image"),
    "toto": _rtx(30, "image", _OPEN),
    "columbia_cairlab_pusht_real": _rtx(10, "image", _CLOSE, "wrist_image"),
    # the next ten steps in one vector each: the first of them is the action
    "bc_z": _rtx(
        10,
        "image",
        "action/future/xyz_residual[:3],action/future/axis_angle_residual[:3],"
        "action/future/target_close[:1]",
    ),
    "language_table": Keys(10, "rgb", instruction="observation/instruction"),
    # Bridge V2 as its authors publish it, and the name OpenVLA gives it
    "bridge_dataset": _step(5, "image_0", "image_1", "image_2", "image_3"),
    "bridge_orig": _step(5, "image_0", "image_1", "image_2", "image_3"),
    # contributed later
    "nyu_rot_dataset" + _RLDS: _step(3),
    "stanford_hydra_dataset" + _RLDS: _step(10, "image", "wrist_image"),
    "austin_buds_dataset" + _RLDS: _step(20, "image", "wrist_image"),
    "austin_sailor_dataset" + _RLDS: _step(20, "image", "wrist_image"),
    "austin_sirius_dataset" + _RLDS: _step(20, "image", "wrist_image"),
    "nyu_franka_play_dataset" + _RLDS: _step(3, "image", "image_additional_view"),
    "furniture_bench_dataset" + _RLDS: _step(10, "image", "wrist_image"),
    "maniskill_dataset" + _RLDS: _step(20, "image", "wrist_image"),
    "cmu_franka_exploration_dataset" + _RLDS: _step(10, "highres_image"),
    "ucsd_kitchen_dataset" + _RLDS: _step(2),
    "ucsd_pick_and_place_dataset" + _RLDS: _step(3),
    "utokyo_pr2_opening_fridge" + _RLDS: _step(10),
    "utokyo_pr2_tabletop_manipulation" + _RLDS: _step(10),
    "utokyo_xarm_pick_and_place" + _RLDS: _step(10, "image", "image2", "hand_image"),
    "utokyo_xarm_bimanual" + _RLDS: _step(10),
    "tokyo_u_lsmo" + _RLDS: _step(10),
    "kaist_nonprehensile" + _RLDS: _step(10),
    "berkeley_mvp" + _RLDS: _step(5, "hand_image"),
    "berkeley_rpt" + _RLDS: _step(30, "hand_image"),
    "dlr_sara_pour" + _RLDS: _step(10),
    "dlr_sara_grid_clamp" + _RLDS: _step(10),
    "dlr_edan_shared_control" + _RLDS: _step(5),
    "asu_table_top" + _RLDS: _step(12.5),
    "stanford_robocook" + _RLDS: _step(5, "image_1", "image_2"),
    "iamlab_cmu_pickup_insert" + _RLDS: _step(20, "image", "wrist_image"),
    "imperialcollege_sawyer_wrist_cam": _step(10, "image", "wrist_image"),
    "utaustin_mutex": _step(20, "image", "wrist_image"),
    "berkeley_fanuc_manipulation": _step(10, "image", "wrist_image"),
    "cmu_play_fusion": _step(5),
    "cmu_stretch": _step(10),
    "droid": _step(
        15, "exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"
    ),
    "fmb": _step(10, "image_side_1", "image_side_2", "image_wrist_1", "image_wrist_2"),
    "dobbe": _step(0, "wrist_image"),  # 3.75 by one source, 30 by another
}  # fmt: skip


def name_of(directory: Path, split: str) -> str:
    """The name of the data set in a directory, by its shards."""
    return shards.find_shards(directory, split)[0].name.rsplit(f"-{split}.tfrecord-", 1)[0]


def keys_of(directory: Path, split: str) -> Keys | None:
    """What the table says of the data set in a directory, None if it is not in the table.

    A corpus in this project's form is not, whatever its name: it may be one converted from there.
    """
    found = DATA_SETS.get(name_of(directory, split))
    ours = {schema.METADATA + name for name in schema.METADATA_DTYPES}
    return None if found and ours <= declaration_of(directory).keys() else found
