"""The recipe's connector on a CPU as it is where nothing of `recipes.hidden_states` is mended."""

from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
)

from recipes.cpu_hidden_states import CpuHiddenStatesConnector


class UnmendedConnector(CpuHiddenStatesConnector):
    """Writes on a CPU; what a request's end means is vLLM's own code."""

    request_finished = ExampleHiddenStatesConnector.request_finished
    request_finished_all_groups = ExampleHiddenStatesConnector.request_finished_all_groups
    get_finished = ExampleHiddenStatesConnector.get_finished
