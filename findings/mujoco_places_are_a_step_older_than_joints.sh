#!/usr/bin/env bash
# After a step of MuJoCo joints are where they are now, and bodies, sites and pictures where they were before.
#
# The guess: what is read after `mj_step` is of one moment: the joints' angles, the place of the hand, and what a
# camera sees. Seen: a step first computes places from the angles that it begins with, and then moves the angles;
# places stay. So a recorded state of joint angles and a hand's place are of two moments, a step apart, and a scene
# made for a renderer has bodies where they were: 28 mm after five steps of 20 ms of a rod that falls, 54 mm
# after 25. Where a simulation makes many small steps to an action it is one of these.
#
# `mj_forward` (or `mj_kinematics`, for places alone) after the step makes all of one moment.
#
# mujoco 4.0.0, numpy 2.4.6, Python 3.11. Seen (the end of a rod of 0.5 m on a hinge that falls, steps of 20 ms):
#   after  1 steps: site 5.6 mm, body of the scene 5.6 mm from where the joint says; after mj_forward 0.0 mm
#   after  5 steps: site 28.1 mm, body of the scene 28.1 mm from where the joint says; after mj_forward 0.0 mm
#   after 25 steps: site 54.3 mm, body of the scene 54.3 mm from where the joint says; after mj_forward 0.0 mm
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  mujoco==4.0.0 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import mujoco
import numpy as np

model = mujoco.MjModel.from_xml_string("""
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <body pos="0 0 1">
      <joint type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 .5 0 0" size=".03"/>
      <site name="end" pos=".5 0 0"/>
      <geom name="ball" type="sphere" pos=".5 0 0" size=".04" mass="0"/>
    </body>
  </worldbody>
</mujoco>
""")
data, scene = mujoco.MjData(model), mujoco.MjvScene(model, 100)
ball = model.geom("ball").id


def gaps(data):
    """How far the rod's end, of the data and of a scene made for a renderer, is from where the
    joint's angle says, mm."""
    camera, option = mujoco.MjvCamera(), mujoco.MjvOption()
    everything = mujoco.mjtCatBit.mjCAT_ALL
    mujoco.mjv_updateScene(model, data, option, None, camera, everything, scene)
    drawn = next(x for x in scene.geoms[: scene.ngeom] if x.objid == ball and x.objtype == 5)
    places = data.site("end").xpos, np.array(drawn.pos)
    return [1000 * np.linalg.norm(place - end(data.qpos[0])) for place in places]


def end(angle):
    return np.array([0.5 * np.cos(angle), 0, 1 - 0.5 * np.sin(angle)])


for step in range(1, 26):
    before = data.qpos[0]
    mujoco.mj_step(model, data)
    if step in (1, 5, 25):
        np.testing.assert_allclose(data.site("end").xpos, end(before), atol=1e-9)
        now = mujoco.MjData(model)
        now.qpos[:] = data.qpos
        mujoco.mj_forward(model, now)
        late, right = gaps(data), gaps(now)
        print(
            f"after {step:2} steps: site {late[0]:.1f} mm, body of the scene {late[1]:.1f} mm from "
            f"where the joint says; after mj_forward {right[0]:.1f} mm"
        )
        assert min(late) > 5 and max(right) < 1e-3, (late, right)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
