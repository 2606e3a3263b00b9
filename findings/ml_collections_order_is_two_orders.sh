#!/usr/bin/env bash
# A ConfigDict iterates in the order of the alphabet and writes JSON in the order of insertion.
#
# The guess: a ConfigDict keeps the order in which fields were set, as dict does. Seen: iteration, keys(),
# values(), items(), to_dict() and ** give the fields sorted by name, while to_json() of the same
# object gives them as they were set. So the datasets of a mixture that a run read from its config, and
# those that a program reads from the config which that run saved, come in other orders: whatever
# goes by position (weights, a seed per dataset, a head per robot) is swapped without a word.
#
# It helps to go by name, to hold an order in a tuple, or to pass sort_keys=False.
#
# ml_collections 1.1.0, Python 3.11. Seen:
#   iterated: bridge hand robot
#   as JSON: robot bridge hand
#   sort_keys=False: robot bridge hand
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile ml_collections==1.1.0
cat > "$folder/ask.py" <<'PYTHON'
import json

from ml_collections import ConfigDict

weights = {"robot": 0.7, "bridge": 0.2, "hand": 0.1}
config = ConfigDict(weights)
iterated, saved = list(config), list(json.loads(config.to_json()))
kept = list(ConfigDict(weights, sort_keys=False))
print("iterated:", *iterated)
print("as JSON:", *saved)
print("sort_keys=False:", *kept)
assert iterated == list(config.keys()) == list(config.to_dict()) == list(dict(**config))
if iterated != sorted(weights) or saved != list(weights) or kept != list(weights):
    raise SystemExit("it has changed")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
