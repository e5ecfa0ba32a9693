"""Requests made from our OpenAPI schema, right ones and wrong ones: every answer is one that the schema names, in its form."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi import checks
from trials import trials

load_all_checks()
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
OPERATIONS = 9
EACH = trials(15)


def asked(url, cases, tries):
    """Statuses of that many requests."""
    statuses = set()

    @given(cases)
    @settings(max_examples=tries, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def one(case):
        reply = case.call(base_url=url, timeout=60)
        statuses.add(reply.status_code)
        case.validate_response(reply, checks=CHECKS)

    one()
    return statuses


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_every_answer_is_one_that_is_documented(server, mode):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) == OPERATIONS
    statuses = set()
    for operation in operations:
        posted = operation.method.lower() == "post"
        if not posted and mode == GenerationMode.NEGATIVE:
            continue  # nothing can be wrong with what takes nothing

        tries = EACH if posted else 3
        statuses |= asked(server.url, operation.as_strategy(generation_mode=mode), tries)
    assert statuses - {200}  # at random, hardly anything names the right model
    assert server.embed("a").status_code == 200
