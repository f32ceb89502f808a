"""Configuration of the site: ``make docs`` builds it in ``docs/_build/html``.

The build needs no network. Notebooks of ``tutorials/`` are executed. ``DOCS_EXECUTE=off`` leaves
that out, and ``DOCS_EXECUTE=cache`` executes only notebooks whose text has changed.
"""

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning:arviz"  # in the notebooks' processes

import pyro_flowsamp  # noqa: E402

project = "pyro_flowsamp"
author = "the authors of pyro_flowsamp"
copyright = author
release = pyro_flowsamp.__version__
version = release.split("+")[0]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
html_static_path = ["_static"]

# ---- pages in Markdown, and notebooks ------------------------------------------------------------
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "amsmath", "linkify"]
myst_linkify_fuzzy_links = False  # only https://..., and no names of files
myst_heading_anchors = 3
nb_execution_mode = os.environ.get("DOCS_EXECUTE", "force")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_execution_show_tb = True

# ---- API -----------------------------------------------------------------------------------------
autosummary_generate = True
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings say what each argument is
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ---- HTML ----------------------------------------------------------------------------------------
html_theme = "pydata_sphinx_theme"
html_title = "pyro_flowsamp"
html_css_files = ["site.css"]
html_show_sourcelink = False
# Pages without a column on the left: those above all others, and studies, whose tables are wide.
html_sidebars = {
    name: []
    for name in (
        *("index", "start", "choose", "gotchas", "design"),
        *("advnf_synthetic", "advnf_xy", "annealing_flow", "deformation_gmm", "deformation_phi4"),
        *("evidences", "gradients", "importance_flow", "latent_langevin", "pyro_densities"),
        *("pyro_tests", "records", "sample", "sample_errors", "sample_right", "sbc", "speed"),
        *("traced", "verdict_calibration"),
    )
}
html_theme_options = {
    "show_prev_next": False,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
}
# MathJax is part of the site, so that formulas are seen without a network too.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}
