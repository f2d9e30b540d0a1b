"""The server against its own OpenAPI description: schemathesis, right and wrong, the same each time."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from simcse_jax.serving.web.app import make_app
from simcse_jax.serving.web.guard import Settings
from tests.serving.web.made_model import MadeIndex, MadeModel
from tests.serving.web.servers import served

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
PATHS = make_app(MadeModel(), Settings()).openapi()["paths"]
OPERATIONS = [f"{method.upper()} {path}" for path, methods in PATHS.items() for method in methods]


@pytest.fixture(scope="module")
def operations() -> Iterator[dict[str, Any]]:
    # Short texts are long already, so that what is too long is refused as that and not for the bytes of the whole.
    with served(MadeModel(MadeIndex()), Settings(name="made", max_characters=1000)) as url:
        found = [result.ok() for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
        yield {operation.label: operation for operation in found}


@pytest.mark.slow
@pytest.mark.parametrize("label", OPERATIONS)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=str)
def test_no_request_breaks_the_server_or_its_description(operations: dict[str, Any], label: str, mode: Any) -> None:
    # Without its pytest plugin, which another release of pytest breaks.
    assert sorted(operations) == sorted(OPERATIONS)
    if mode is schemathesis.GenerationMode.NEGATIVE and label.startswith("GET "):
        return  # no body is sent, so nothing can be wrong

    @settings(
        max_examples=25,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(st.data())
    def check(data: Any) -> None:
        data.draw(operations[label].as_strategy(generation_mode=mode)).call_and_validate(timeout=20)

    check()
