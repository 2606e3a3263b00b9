#!/usr/bin/env bash
# A world of PyBullet that restoreState brought back does not go on as it went on before.
#
# The guess: saveState keeps all that the simulation needs, contacts too, so that what follows
# restoreState is the same to the bit each time.
#
# Positions, velocities and contacts do come back exactly, and yet the stack of cubes below falls
# otherwise: by micrometres where it is restored at once, by a tenth of a millimetre where other things
# happened in between, and more the longer it runs. Restoring from a file of saveBullet is the same.
# The order of pairs that may touch, which decides the order in which the solver takes contacts, is
# what the world has by its past, and is in no snapshot. With the parameter
# deterministicOverlappingPairs=1, which is not the default, all three are the same to the bit here; in
# a scene with an arm of many joints we still saw 1e-14 to 1e-10 of difference. What is exact is to
# build the world anew and to repeat all steps.
#
# pybullet 3.2.7, numpy 2.4.6, Python 3.11, Linux x86-64. Seen:
#   default: at once differs | after others differs | 1: at once the same | after others the same
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pybullet==3.2.7 numpy==2.4.6
cat > "$folder/ask.py" <<'PYTHON'
import sys

import numpy as np
import pybullet as p
import pybullet_data


def told(parameters):
    p.connect(p.DIRECT)
    p.setAdditionalSearchPath(pybullet_data.getDataPath())
    p.setGravity(0, 0, -9.8)
    p.setPhysicsEngineParameter(**parameters)
    p.loadURDF("plane.urdf")
    rng = np.random.default_rng(0)
    places = ([*rng.uniform(-0.06, 0.06, 2), 0.05 + 0.06 * i] for i in range(12))
    cubes = [p.loadURDF("cube_small.urdf", place) for place in places]

    def run(steps):
        for _ in range(steps):
            p.stepSimulation()
        return np.array([x for c in cubes for y in p.getBasePositionAndOrientation(c) for x in y])

    before = run(120)
    saved = p.saveState()
    wanted = run(60)
    p.restoreState(saved)
    assert np.array_equal(run(0), before)
    yield "at once", run(60), wanted
    for cube in cubes:
        p.resetBasePositionAndOrientation(cube, [3 * np.sin(cube), 3 * np.cos(cube), 0.1], [0, 0, 0, 1])
    run(50)
    p.restoreState(saved)
    assert np.array_equal(run(0), before)
    yield "after others", run(60), wanted
    p.disconnect()


for name, parameters in (("default", {}), ("1", {"deterministicOverlappingPairs": 1})):
    for when, found, wanted in told(parameters):
        apart = np.abs(found - wanted).max()
        print(f"{name} {when}: {apart:.1e}", file=sys.stderr)
        print(f"{name} {when}: {'differs' if apart else 'the same'}", file=open(sys.argv[1], "a"))
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder/seen" > "$folder/printed"
seen=$(cat "$folder/seen")
echo "$seen"
wanted=$'default at once: differs\ndefault after others: differs
1 at once: the same\n1 after others: the same'
[ "$seen" = "$wanted" ] || { echo "it has changed:"; echo "$wanted"; exit 1; }
