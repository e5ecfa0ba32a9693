"""`mine` against an oracle that does everything the slow way."""

import mine_oracle
from hypothesis import given, settings
from mine_oracle import fields, many_rows

many = settings(max_examples=100, deadline=None)


@many
@given(rows=many_rows, fields=fields)
def test_exactly_what_the_oracle_retrieves_and_never_a_positive(rows, fields):
    mine_oracle.without_a_judge(rows, fields)


@many
@given(rows=many_rows, fields=fields)
def test_a_judge_never_lets_a_likely_positive_through(rows, fields):
    mine_oracle.with_a_judge(rows, fields)
