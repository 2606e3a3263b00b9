#!/usr/bin/env bash
# The weights of a Grain mixture count examples that a filter has dropped.
#
# The guess: MapDataset.mix of two corpora with equal weights gives as many examples of the one as of
# the other, whatever was filtered out of each before. Seen: a filter leaves holes, the mixture takes
# turns between places, holes included, and skips these when it is read. Of a corpus of which a
# filter (no action, too short, no instruction) keeps a tenth, one example in eleven comes out, not one in
# two; len() says nothing of it. With .to_iter_dataset() before, IterDataset.mix gives one in two.
#
# It matters where robot and human videos are mixed by weights: filter when the index is made, or mix
# iterators.
#
# grain 0.2.18, Python 3.11. Seen, of 1,000 examples each, of which 100 of the first pass the filter:
#   MapDataset.mix, weights 0.5 and 0.5:  length 2000, reads 1100, of the first 100
#   IterDataset.mix, weights 0.5 and 0.5: reads 200, of the first 100
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile grain==0.2.18
cat > "$folder/ask.py" <<'PYTHON'
import grain

robot = grain.MapDataset.range(1000).filter(lambda i: i % 10 == 0)
human = grain.MapDataset.range(1000, 2000)
mixed = grain.MapDataset.mix([robot, human], weights=[0.5, 0.5])
iterators = [robot.to_iter_dataset(), human.to_iter_dataset()]
read = [list(mixed), list(grain.IterDataset.mix(iterators, weights=[0.5, 0.5]))]
shares = [(len(found), sum(i < 1000 for i in found)) for found in read]
print(f"MapDataset.mix: length {len(mixed)}, reads {shares[0][0]}, of the first {shares[0][1]}")
print(f"IterDataset.mix: reads {shares[1][0]}, of the first {shares[1][1]}")
assert len(mixed) == 2000 and shares == [(1100, 100), (200, 100)], "it has changed"
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" 2>/dev/null
