"""Sphinx configuration."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import diagrams  # noqa: E402
import state_diagram  # noqa: E402

_metadata = configparser.ConfigParser()
_metadata.read(ROOT / "setup.cfg", encoding="utf-8")

project = "wsthread"
author = "the wsthread authors"
copyright = author
release = version = _metadata["metadata"]["version"]

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"wsthread {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"


def draw(app: object) -> None:
    """Draw the diagrams; that of the states from the table of this very build."""
    diagrams.write_all()
    state_diagram.write(ROOT / "docs" / "_static" / "states.svg")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", draw)
