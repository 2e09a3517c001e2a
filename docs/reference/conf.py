"""The API reference, from the docstrings: `make reference`."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "Pudica"
release = importlib.metadata.version("pudica")
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "settings_pages"]
html_theme = "alabaster"
html_theme_options = {"description": "Learning together without giving data or models away"}
html_show_copyright = False
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
