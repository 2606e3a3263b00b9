"""Every figure of the report; each function returns a `Picture` (data URI, alt text, size)."""

from lapa_jax.report.charts import (
    code_meaning,
    code_usage,
    heat_map,
    label_curves,
    loss_curves,
    success_chart,
)
from lapa_jax.report.frames import Strip, atlas, film_strips, frame_columns, reconstruction_grid
from lapa_jax.report.picture import Picture, picture_of_frame
from lapa_jax.report.pipeline import pipeline_diagram

__all__ = [
    "Picture",
    "Strip",
    "atlas",
    "code_meaning",
    "code_usage",
    "film_strips",
    "frame_columns",
    "heat_map",
    "label_curves",
    "loss_curves",
    "picture_of_frame",
    "pipeline_diagram",
    "reconstruction_grid",
    "success_chart",
]
