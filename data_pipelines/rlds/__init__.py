"""RLDS shards: schema, TFRecord, reading and writing."""
