"""An engine that does not start: one line that names the settings and the cause."""

import pytest
import ray
from ray.exceptions import ActorDiedError

from llm4sbr_ray.config import Engine
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.perspectives.engine import not_started, refuse_unknown


def test_a_setting_that_vllm_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"engine_kwargs: vLLM has no setting nonsense$"):
        refuse_unknown(Engine(engine_kwargs={"enforce_eager": True, "nonsense": 1}))


@pytest.mark.integration
def test_the_cause_of_an_actor_that_did_not_start_is_named_in_one_line(ray_cluster: None) -> None:
    class Broken:  # here, so that Ray sends it whole: workers do not import tests
        def __init__(self) -> None:
            try:
                raise KeyError("first")
            except KeyError as error:
                raise ValueError("no weights\n  in this folder") from error

        def ready(self) -> bool:
            return True

    class Leaving:
        def leave(self) -> None:
            ray.actor.exit_actor()

    with pytest.raises(ActorDiedError) as caught:
        ray.get(ray.remote(num_cpus=0)(Broken).remote().ready.remote())
    assert caught.value.actor_init_failed
    message = str(not_started(caught.value, "some/model"))
    assert "perspectives.model: 'some/model'" in message
    assert "perspectives.engine: ValueError: no weights in this folder" in message
    assert "\n" not in message
    with pytest.raises(ActorDiedError) as caught:  # one that had started is another matter
        ray.get(ray.remote(num_cpus=0)(Leaving).remote().leave.remote())
    assert not caught.value.actor_init_failed
