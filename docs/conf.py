"""Sphinx configuration."""

from __future__ import annotations

import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

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
