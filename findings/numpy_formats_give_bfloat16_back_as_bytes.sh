#!/usr/bin/env bash
# Arrays of bfloat16 come back from npz and HDF5 as two bytes a number, and of safetensors' two readers from one.
#
# The guess: a format that cannot hold a JAX array of bfloat16 says so where it is written. Seen: `np.savez` and
# h5py write it without a word, and what is read is of dtype void of two bytes, which no arithmetic takes and
# whose numbers only who knows the type gets back (`.view(ml_dtypes.bfloat16)`). Of float8 and int4 it is the
# same, of one byte, so that two lost types cannot be told apart. What safetensors writes is right, for Flax as
# for numpy; `load_file` reads it, and `load`, of the same bytes in memory, fails for both.
#
# msgpack-numpy and zarr refuse while writing.
#
# numpy 2.4.6, ml_dtypes 0.6.0, h5py 3.16.0, safetensors 0.8.0, jax 0.10.2, Python 3.11. Seen:
#   npz: bfloat16 |V2, float8_e4m3fn |V1, int4 |V1
#   HDF5: bfloat16 |V2, float8_e4m3fn |V1, int4 |V1
#   safetensors.numpy: load_file bfloat16, load KeyError: 'BF16'
#   safetensors.flax: load_file bfloat16, load KeyError: 'BF16'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  numpy==2.4.6 ml_dtypes==0.6.0 h5py==3.16.0 safetensors==0.8.0 jax==0.10.2 flax==0.12.1
cat > "$folder/ask.py" <<'PYTHON'
import sys

import h5py
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.flax
import safetensors.numpy

path = f"{sys.argv[1]}/array"
TYPES = ("bfloat16", "float8_e4m3fn", "int4")


def npz(x):
    np.savez(f"{path}.npz", x=x)
    return np.load(f"{path}.npz")["x"]


def hdf5(x):
    with h5py.File(f"{path}.h5", "w") as file:
        file["x"] = x
    with h5py.File(f"{path}.h5") as file:
        return file["x"][:]


for name, kept in (("npz", npz), ("HDF5", hdf5)):
    found = []
    for kind in TYPES:
        x = np.array([1, -2, 3], getattr(ml_dtypes, kind))
        y = kept(x)
        found.append(f"{kind} {y.dtype.str}")
        assert y.dtype.kind == "V" and y.dtype.itemsize == x.dtype.itemsize, y.dtype
        np.testing.assert_array_equal(y.view(x.dtype), x)
    print(f"{name}: {', '.join(found)}")

x = np.array([1.5, -2, 3], ml_dtypes.bfloat16)
for module, array in ((safetensors.numpy, x), (safetensors.flax, jnp.array(x))):
    module.save_file({"x": array}, path)
    of_file = module.load_file(path)["x"]
    np.testing.assert_array_equal(np.asarray(of_file, np.float32), np.asarray(x, np.float32))
    try:
        raise SystemExit(f"{module.__name__}.load gives {module.load(module.save({'x': array}))}")
    except KeyError as error:
        print(f"{module.__name__}: load_file {of_file.dtype}, load KeyError: {error}")
    assert str(of_file.dtype) == "bfloat16"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py" "$folder"
