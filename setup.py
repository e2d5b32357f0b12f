"""The long description; all else is in setup.cfg.

The package index shows README.md without the files beside it, so its relative links become links to
the repository, at the tag of this version.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from setuptools import setup

TOP = Path(__file__).resolve().parent
# A link in the text, or a reference below it.
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )(?![a-z]+:|#)([^)\s]+)", re.M)


def read(name: str) -> str:
    return (TOP / name).read_text(encoding="utf-8")


def long_description() -> str:
    metadata = configparser.ConfigParser()
    metadata.read_string(read("setup.cfg"))
    version = re.search(r'__version__ = "(.+)"', read("mtt/version.py"))
    assert version is not None
    files = f"{metadata['metadata']['url']}/blob/v{version[1]}/"
    return LINK.sub(lambda found: found[1] + files + found[2], read("README.md"))


setup(long_description=long_description(), long_description_content_type="text/markdown")
