#!/usr/bin/env bash
# safetensors 0.8 saves a transposed NumPy array with the shape of the one and the numbers of the other.
#
# The guess: safetensors.numpy saves what an array holds, or refuses views that are not contiguous, as
# it does for PyTorch. So it was: 0.4.5 to 0.7.0 copy them in order. Seen with 0.8.0: the memory is
# written as it lies, under the shape of the view. Of a transposed matrix the numbers come back in
# other places, of every other row the first half of the rows. Nothing is raised, shapes and types fit.
#
# It matters for whoever takes weights from JAX (kernels are in x out) to PyTorch (out x in) by a
# transpose, and compares shapes alone: call numpy.ascontiguousarray first. safetensors.flax, which
# has JAX transpose, is right.
#
# safetensors 0.7.0 and 0.8.0, numpy 2.4.6, Python 3.11. Seen, [[0 1 2] [3 4 5]] transposed:
#   0.7.0: [[0 3] [1 4] [2 5]] | 0.8.0: [[0 1] [2 3] [4 5]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/ask.py" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

path = f"{sys.argv[1]}/one.safetensors"
kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
save_file({"weight": kernel.T}, path)
found = load_file(path)["weight"]
print(safetensors.__version__, found.astype(int).tolist())
wanted = kernel.T if safetensors.__version__ == "0.7.0" else kernel.reshape(3, 2)
if not np.array_equal(found, wanted):
    raise SystemExit("it has changed: 0.8.0 wrote the memory of a transposed array as it lay")
PYTHON
for version in 0.7.0 0.8.0; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 \
    "safetensors==$version"
  "$folder/venv/bin/python" "$folder/ask.py" "$folder"
done
