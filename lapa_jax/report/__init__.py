"""One HTML file that tells what a run did: `html.Report`, `figures`, `environment`.

Importing the package is cheap; matplotlib loads with `figures`, jinja2 with `html`.
"""
