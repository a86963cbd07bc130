"""Requests that the server's own description allows and forbids, as schemathesis makes them: no fault, ever."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from scoutattention.server.app import Server
from scoutattention.server.state import Options

from .fake import FakeEngine

SERVER = Server(FakeEngine(pieces=("Hi", " there")), Options("fake"))
schema = schemathesis.openapi.from_asgi("/openapi.json", SERVER.app)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_fault(case):
    response = case.call()
    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, response_schema_conformance])
    assert SERVER.places.taken == 0
