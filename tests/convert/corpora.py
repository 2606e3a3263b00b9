"""Reading back what a converter wrote."""

import numpy as np

from data_pipelines.rlds import shards, tfrecord


def read(out, split="train"):
    """{episode_id: {key without prefix: values}} in the order of the shards; texts once."""
    found = {}
    for path in shards.find_shards(out, split):
        for record in tfrecord.read_payloads(path):
            item = {}
            for key, feature in tfrecord.parse_example(record).items():
                values = {
                    tfrecord.BYTES: feature.byte_items,
                    tfrecord.FLOAT: feature.floats,
                    tfrecord.INT64: feature.ints,
                }[feature.kind](record)
                item[key.split("/")[-1]] = values
            steps = len(item["image"])
            texts = {text.decode() for text in item["language_instruction"]}
            assert len(texts) == 1 and len(item["language_instruction"]) == steps
            item["language_instruction"] = texts.pop()
            for key in ("action", "state"):
                if key in item:
                    item[key] = np.reshape(item[key], (steps, -1))
            found[item["episode_id"][0].decode()] = item
    return found
