#!/usr/bin/env bash
# JAX_PLATFORMS=cuda,cpu computes on the CPU, without a word, where the CUDA plugin is not installed.
#
# The guess: every platform of the list must be there, else JAX raises and names it, as it does for
# tpu, rocm and names that do not exist, first in the list or last. CUDA is passed over in either
# place; alone it ends in an AssertionError that has no text.
#
# It matters for images whose environment says cuda,cpu: one that lost its plugin trains on the CPU.
# Looking at the platform of the devices that there are is what tells.
#
# jax 0.10.2, jaxlib 0.10.2, Linux x86-64 without an accelerator. Seen:
#   cuda,cpu cpu | cpu,cuda cpu | cuda AssertionError without text
#   tpu,cpu RuntimeError | rocm,cpu RuntimeError | cpu,tpu RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/ask.py" <<'PYTHON'
import jax

try:
    print(jax.devices()[0].platform)
except Exception as error:
    print(type(error).__name__, "with text" if str(error) else "without text")
PYTHON
check() {
  local seen
  seen=$(JAX_PLATFORMS=$1 "$folder/venv/bin/python" "$folder/ask.py" 2>/dev/null)
  echo "$1: $seen"
  [ "$seen" = "$2" ] || { echo "it has changed: $2 before"; exit 1; }
}
check cuda,cpu "cpu"
check cpu,cuda "cpu"
check cuda "AssertionError without text"
for list in tpu,cpu rocm,cpu cpu,tpu; do
  check "$list" "RuntimeError with text"
done
