"""What a position of a row holds: the numbers that data, layouts and models agree on."""

MODALITIES = ("text", "image", "latent", "action", "state")
TEXT, IMAGE, LATENT, ACTION, STATE = range(5)
WITH_IDS = MODALITIES[:STATE]  # those that have a vocabulary
FILL = -1  # the id of a token whose embedding is computed: from pixels, or of what is fed

WEIGHTS = ("trained", "int8")  # what a policy decodes with: as they trained, or rounded to 8 bits
