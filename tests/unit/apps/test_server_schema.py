"""Whatever clients send, answers are as the API's description says, and none is a fault of the server."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

# not of use here: a picture of random bytes is refused, and OpenAI's and Ollama's APIs ignore unknown fields
UNUSED = [checks.positive_data_acceptance, checks.negative_data_rejection]


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_answers_are_as_described(server: Any, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        if mode == GenerationMode.NEGATIVE and operation.method == "get":
            continue  # without a body or parameters, nothing can be wrong

        @settings(max_examples=8, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(excluded_checks=UNUSED)

        check()
