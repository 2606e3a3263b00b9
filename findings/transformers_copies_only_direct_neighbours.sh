#!/usr/bin/env bash
# Code beside weights (trust_remote_code) may be several files, but older transformers copy from a
# local folder only what the first file imports itself.
#
# The guess: imports of neighbours are followed from file to file, since the function that lists
# them is recursive. It lists those of the copies, after the first file's own were copied: what only
# a neighbour imports is not there yet, and a FileNotFoundError names the cache, not the folder.
#
# It matters for folders that were tried with a new version alone. Where the first file imports all
# of them, used or not, each version loads it.
#
# transformers 4.46.3 and 5.0.0 (seen), no longer 5.24.0 (seen). Seen with 5.0.0:
#   a chain of three files: FileNotFoundError | the first imports both: 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.0.0
cat > "$folder/ask.py" <<'PYTHON'
import pathlib
import sys

from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder = pathlib.Path(sys.argv[1])
folder.mkdir()
more = "from .third import x\n" if folder.name == "both" else ""
(folder / "first.py").write_text(f"from .second import x\n{more}class A:\n    found = x\n")
(folder / "second.py").write_text("from .third import x\n")
(folder / "third.py").write_text("x = 3\n")
try:
    print(get_class_from_dynamic_module("first.A", str(folder)).found)
except Exception as error:
    print(type(error).__name__)
PYTHON
check() {
  local seen
  seen=$(HF_HOME="$folder/home" HF_HUB_OFFLINE=1 \
    "$folder/venv/bin/python" "$folder/ask.py" "$folder/$1" 2>/dev/null)
  echo "$1: $seen"
  [ "$seen" = "$2" ] || { echo "it has changed: $2 before"; exit 1; }
}
check chain "FileNotFoundError"
check both "3"
