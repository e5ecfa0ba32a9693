"""Records of the report refuse what would be shown wrongly."""

import math

import pytest

from hardwon.serve.report_content import Calibration, Estimate, MeanRow, Point, Results


@pytest.mark.parametrize("value", [71.3, -0.1, math.nan, math.inf])
def test_an_estimate_is_a_share(value):
    with pytest.raises(ValueError, match=r"value must be a share in \[0, 1\], got .*: divide percentages by 100"):
        Estimate(value)


def test_an_interval_has_two_ends():
    with pytest.raises(ValueError, match=r"both ends or none, got low=0\.1 and high=None"):
        Estimate(0.2, 0.1)
    with pytest.raises(ValueError, match="high must be a share"):
        Estimate(0.9, 0.8, 1.01)


def test_rows_match_the_labels():
    with pytest.raises(ValueError, match=r"'all' has 1 estimates for 2 labels \('a', 'b'\)"):
        Results(("a", "b"), (), (MeanRow("all", 3, (Estimate(0.5),)),))


@pytest.mark.parametrize(("loss", "precision", "named"), [(math.nan, None, "loss"), (1.0, math.inf, "precision")])
def test_points_are_finite(loss, precision, named):
    with pytest.raises(ValueError, match=f"{named} at step 7 is"):
        Point(7, loss, precision)


@pytest.mark.parametrize(("gold", "random"), [((), ()), ((1, 2), (1,))])
def test_calibration_has_the_same_bins(gold, random):
    with pytest.raises(ValueError, match="need the same bins, at least one"):
        Calibration(0.9, 0.1, gold, random)
