"""Settings of Sphinx; `make docs` builds the documentation into docs/_build/html."""

import inspect
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import kpops
import kpops.testing

project = "kpops"
author = "The kpops developers"
copyright = "2026, The kpops developers"
version = release = kpops.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]

# The API pages: one per name, from the docstrings. The class template lists a class's own members,
# so what comes from SciPy's LinearOperator or from nn.Module stays out.
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types are in the docstrings
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = f"kpops {release}"
html_show_sourcelink = False
# Only the API reference has pages below it to navigate.
html_sidebars = {
    page: []
    for page in (
        "index",
        "start",
        "concepts",
        "spectra",
        "engines",
        "benchmarks",
        "your_cell",
        "gpu",
        "search",
    )
}
html_theme_options = {
    "logo": {"text": "kpops"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_nav_level": 2,
    "navigation_with_keys": False,
}


def signature_of_init(app, what, name, obj, options, signature, return_annotation):
    """Show the arguments of __init__ where a base class has a __new__ that takes anything."""
    if what == "class" and signature == "(*args, **kwargs)":
        of_init = inspect.signature(obj.__init__)
        arguments = [
            p.replace(annotation=p.empty) for p in of_init.parameters.values() if p.name != "self"
        ]
        signature = str(of_init.replace(parameters=arguments, return_annotation=of_init.empty))
    return signature, return_annotation


def setup(app):
    app.connect("autodoc-process-signature", signature_of_init)
