"""Every figure of the report; each function returns a `Picture` (data URI, alt text, size)."""

from lapa_jax.report.charts import band_curves as band_curves
from lapa_jax.report.charts import chunk_curves as chunk_curves
from lapa_jax.report.charts import code_meaning as code_meaning
from lapa_jax.report.charts import code_usage as code_usage
from lapa_jax.report.charts import dot_plots as dot_plots
from lapa_jax.report.charts import heat_maps as heat_maps
from lapa_jax.report.charts import is_logarithmic as is_logarithmic
from lapa_jax.report.charts import label_curves as label_curves
from lapa_jax.report.charts import loss_curves as loss_curves
from lapa_jax.report.charts import measure_curves as measure_curves
from lapa_jax.report.charts import success_chart as success_chart
from lapa_jax.report.charts import success_curves as success_curves
from lapa_jax.report.frames import Strip as Strip
from lapa_jax.report.frames import atlas as atlas
from lapa_jax.report.frames import film_strips as film_strips
from lapa_jax.report.frames import frame_columns as frame_columns
from lapa_jax.report.frames import reconstruction_grid as reconstruction_grid
from lapa_jax.report.picture import Picture as Picture
from lapa_jax.report.picture import picture_of_frame as picture_of_frame
from lapa_jax.report.pipeline import pipeline_diagram as pipeline_diagram
