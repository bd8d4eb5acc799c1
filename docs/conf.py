"""Sphinx settings: `make docs` builds these pages strictly, offline, into build/docs."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from fedproxy_secure import __version__  # noqa: E402

project = "FedProxy-Secure"
author = "the FedProxy-Secure authors"
project_copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "dataflow",  # below _ext: diagrams from text
    "docstrings",  # below _ext: docstrings are written with Markdown's backticks
    "generated",  # below _ext: parts of pages that are written from the code
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext", "diagrams"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 4

nitpicky = True  # a reference that leads nowhere is a warning, and warnings end the build
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config, model_post_init, __init__"}
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Guarantees", ("Not guaranteed", "notes_style")]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["diagrams.css", "tables.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
