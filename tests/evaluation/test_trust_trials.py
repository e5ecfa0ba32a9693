"""A sample of the trials of group E; all of them: python -m benchmarks.reliability --only E1 E3 E7 E9."""

from trials import trials


def test_a_collapsed_model_gets_chance_and_order_plays_no_part():
    from benchmarks.reliability.evaluation import collapsed

    outcome = collapsed(trials(3), seed=3, queries=5, candidates=7)
    assert outcome.failed == 0, outcome.found


def test_no_headline_number_without_all_data_sets():
    from benchmarks.reliability.evaluation import incomplete

    outcome = incomplete(trials(6), seed=3)
    assert outcome.failed == 0, outcome.found


def test_a_wrong_submission_is_found():
    from benchmarks.reliability.evaluation import leaderboard

    outcome = leaderboard(trials(150), seed=3)
    assert outcome.failed == 0, outcome.found
