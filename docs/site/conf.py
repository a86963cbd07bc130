"""How Sphinx builds the site: `make site`."""

from scoutattention import __version__

project = "ScoutAttention"
copyright = "the authors of ScoutAttention"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4
exclude_patterns = ["site", "lab/results"]
html_theme = "furo"
html_title = "ScoutAttention"

# Docstrings have code between single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
python_use_unqualified_type_names = True
