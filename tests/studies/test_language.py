"""The rows on a whole model: the library's own training, from alignment to results."""

import json


def test_a_row_on_a_whole_model(studied, tiny_vlm, tmp_path):
    from dataclasses import replace

    from hardwon.data.emoji import Size
    from studies.run import material_of, study
    from studies.suites import gpu

    whole = gpu().only(["symmetric"])
    scale = replace(whole.scale, size=Size(collages=20, queries=20, concepts=60), steps=2, encodings=8, align=2)
    suite = replace(whole, scale=scale, backbone=str(tiny_vlm))
    (tmp_path / material_of(suite)).symlink_to(next(studied.glob("material-*")))
    rows = study(suite, tmp_path, [0], workers=0, say=lambda *_: None)
    assert [row["name"] for row in rows] == ["infonce", "symmetric"]
    for row in rows:
        assert row["steps"] == 2 and row["encodings"]["training"] >= 2 * 5 and 0 <= row["validation"] <= 1
    assert json.loads((tmp_path / "gpu" / "cells" / "symmetric-0.json").read_text()) == rows[1]
    assert study(suite, tmp_path, [0], workers=0, say=lambda *_: None) == rows
