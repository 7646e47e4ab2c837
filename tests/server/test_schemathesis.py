"""Requests made up from the server's own description: whatever comes, it answers, and as it says it does."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from running import PATIENCE, Running

OPERATIONS = [
    "GET /health",
    "GET /metrics",
    "GET /ready",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/chat",
    "POST /v1/chat/completions",
    "POST /v1/check-api-key",
    "POST /v1/completions",
    "POST /v1/detokenize",
    "POST /v1/generate",
    "POST /v1/tokenize",
    "POST /v2/chat",
]
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
]


@pytest.fixture(scope="session")
def operations(server: Running) -> dict:
    description = schemathesis.openapi.from_url(server.url + "/openapi.json", timeout=PATIENCE)
    return {found.ok().label: found.ok() for found in description.get_all_operations()}


def test_every_operation_is_asked(operations):
    assert sorted(operations) == OPERATIONS


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_request_is_answered_as_described(operations, models, label):
    operation = operations[label]
    modes = strategies.sampled_from(GenerationMode)
    cases = modes.flatmap(lambda mode: operation.as_strategy(generation_mode=mode))

    @hypothesis.given(case=cases, model=strategies.sampled_from([*models, None]))
    @hypothesis.settings(
        max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
    )
    def ask(case, model) -> None:
        # Of a made-up name there is no model, and most requests would be refused for that alone.
        for named in (case.body, case.path_parameters):
            if model and isinstance(named, dict) and isinstance(named.get("model"), str):
                named["model"] = model
        # A broken connection raises here.
        response = case.call(timeout=PATIENCE)
        # Of streams, the description tells the parts and not the whole.
        streamed = "stream" in response.headers["content-type"][0]
        schemas = [] if streamed else [openapi_checks.response_schema_conformance]
        case.validate_response(response, checks=[*CHECKS, *schemas])

    ask()
