"""What a position of a row holds: the numbers that data, layouts and models agree on."""

MODALITIES = ("text", "image", "latent", "action")
TEXT, IMAGE, LATENT, ACTION = range(4)
FILL = -1  # the id of an image token that the model's front-end computes from pixels

WEIGHTS = ("trained", "int8")  # what a policy decodes with: as they trained, or rounded to 8 bits
