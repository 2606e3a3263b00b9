"""What `lapa bench` measures: each module has `add_arguments` and `run`, whose rows it prints."""
