"""Settings of Sphinx; `make docs` builds the documentation into docs/_build/html."""

import inspect
import sys
from pathlib import Path

import kpops
import kpops.testing

sys.path.insert(0, str(Path(__file__).parent))  # where gallery_order.py is

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
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",  # formulas without a network
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "decisions"]

# The API pages: one per name, from the docstrings. The class template lists a class's own members,
# so what comes from SciPy's LinearOperator or from nn.Module stays out.
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types are in the docstrings
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
toc_object_entries_show_parents = "hide"

# The gallery, in the order in which it is best read. The networks that it shows are trained by
# examples/networks.py, when they are not yet.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"^networks\.py$",
    "within_subsection_order": "gallery_order.in_reading_order",
    "backreferences_dir": "gallery/backreferences",
    "capture_repr": (),  # figures and what is printed, not the last value
    "image_srcset": ["2x"],
    "doc_module": ("kpops",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "matplotlib_animations": False,
    "min_reported_time": 1e9,  # times differ from build to build
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"kpops {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["kpops.css"]
# All pages, with those below the page that is open.
html_sidebars = {"**": ["sidebar-all.html"]}
html_theme_options = {
    "logo": {"text": "kpops"},
    "navbar_align": "left",
    "navbar_center": [],
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
