"""Thumbnails: once each, within a budget."""

import io

import pytest
from PIL import Image

from hardwon.serve.report_pictures import Thumbnails


def noise(sigma: float) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((72, 72), sigma).save(file, "PNG")
    return file.getvalue()


def test_same_picture_same_class(tmp_path):
    picture = noise(50)
    (tmp_path / "a_red-kite.png").write_bytes(picture)
    thumbnails = Thumbnails()
    first, second = thumbnails(picture), thumbnails(tmp_path / "a_red-kite.png")
    assert first.style == second.style == "p0"
    assert (first.alt, second.alt) == ("picture", "picture: a red kite")
    assert thumbnails.css().count("data:image/webp") == 1


@pytest.mark.parametrize("budget", [0, 20_000])
def test_budget_is_kept(budget):
    thumbnails = Thumbnails(budget)
    shown = [thumbnails(noise(60 + n)) for n in range(12)]
    left_out = [t for t in shown if not t.style]
    assert len(thumbnails.css()) <= budget + 12 * 40
    assert left_out and all(t.alt == "picture left out to keep the report small: unnamed" for t in left_out)
    assert bool([t for t in shown if t.style]) == bool(budget)
