"""Tiny models of real architectures and pictures of several sizes, for the tests of models."""

import pytest
import tiny
import vlms
from PIL import Image


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folder by architecture, made when first asked for; never write into one."""

    class Made(dict):
        def __missing__(self, name):
            self[name] = {**vlms.DUAL, **vlms.DECODERS}[name](tmp_path_factory.mktemp("vlms") / name)
            return self[name]

    return Made()


@pytest.fixture(scope="session")
def shapes(pictures, tmp_path_factory):
    """Pictures of several sizes by name."""
    home = tmp_path_factory.mktemp("sizes")
    made = {"plain": pictures["red square"], "other": pictures["blue circle"]}
    for name, size in {"wide": (120, 40), "tall": (30, 90), "large": (300, 220), "dot": (1, 1), "line": (150, 1)}.items():
        made[name] = home / f"{name}.png"
        tiny.draw("green", "triangle", 200).resize(size, Image.Resampling.NEAREST).save(made[name])
    return made
