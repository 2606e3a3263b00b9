#!/usr/bin/env bash
# Augmentations of dm_pix give every image of a batch the same crop, flip and colour.
#
# The guess: random_crop, random_flip_left_right, random_hue and so on, which take B x H x W x C and
# a probability, draw for each image: about half of a batch is flipped. Seen: one draw is for the
# whole batch. All images are flipped or none, all crops begin in one place, all colours turn by one
# angle. Nothing looks wrong, as every picture is a proper augmentation; but a batch of 256 has one.
#
# It helps to jax.vmap over images and split keys. For the frames of one video one draw is what one
# wants.
#
# dm-pix 0.4.5, jax 0.10.2 on a CPU, Python 3.11. Seen, of 64 equal images, how many kinds come out:
#   random_crop: 1 of 64, under vmap 47
#   random_flip_left_right: 1 of 64, under vmap 2
#   random_hue: 1 of 64, under vmap 64
#   random_contrast: 1 of 64, under vmap 64
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
  dm-pix==0.4.5 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np

SIZE = 64
image = jax.random.uniform(jax.random.key(0), (16, 16, 3))
batch = jnp.tile(image, (SIZE, 1, 1, 1))
augment = {
    "random_crop": lambda key, x: pix.random_crop(key, x, (*x.shape[:-3], 8, 8, 3)),
    "random_flip_left_right": pix.random_flip_left_right,
    "random_hue": lambda key, x: pix.random_hue(key, x, 0.3),
    "random_contrast": lambda key, x: pix.random_contrast(key, x, 0.5, 1.5),
}
keys = jax.random.split(jax.random.key(1), SIZE)
for name, one in augment.items():
    whole, each = one(keys[0], batch), jax.vmap(one)(keys, batch)
    counts = [len({image.tobytes() for image in np.asarray(images)}) for images in (whole, each)]
    print(f"{name}: {counts[0]} of {SIZE}, under vmap {counts[1]}")
    assert counts[0] == 1 and counts[1] > 1, "it has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/ask.py"
