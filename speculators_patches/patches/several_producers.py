"""Training asks several servers of hidden states: each sample goes to the one with the least to do.

Upstream's data set has one endpoint. Here `--vllm-endpoint` takes several, separated by commas,
that serve the same model. Which one answers changes no sample's place: batches are put together in
the sampler's order, whoever was asked for what. The drafter is the one that a single server gives,
as far as the servers compute the same values (bitwise on a CPU; on a GPU as far as vLLM's batching
does).

A server that fails is left out until it answers again, and its samples are asked of the others;
training waits (`wait_for_producer`, which does all the waiting) only while all are gone. Each
process of a training asks for one sample at a time, so --num-workers bounds how many servers are
busy at once; with 0 the others only stand by.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_ONCE = "speculators.train.data:ArrowDataset._generate_hidden_states_once"

PATCH = Patch(
    name="several_producers",
    defect="Training can have one vLLM server only, however many GPUs could produce hidden states.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.train.data",
            "ArrowDataset._generate_hidden_states_once",
            fingerprints={"==0.8.1": "56d4b012ca0b97c4", "==0.9.0": "be194d45b84609b1"},
        ),
        # Sets `client` up for `vllm_endpoint` when there is none.
        Target(
            "speculators.train.data",
            "ArrowDataset._setup_client",
            fingerprints={">=0.8.1,<0.9.1": "58e447e8113a49dd"},
            observed=True,
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream's --vllm-endpoint takes several and leaves out those that fail",
    proof="tests/faults/test_several_producers.py::test_work_goes_to_who_is_free_and_a_dead_one_costs_nothing",
    tested=("0.8.1", "0.9.0"),
)

_once: Any = None


def generate_once(self: Any, *args: Any) -> Any:
    """Upstream's round trip with the server whose turn it is; the data set's own with one server.

    Raises:
        Exception: as upstream's.
    """
    from speculators_patches.patches.wait_for_producer import _discard
    from speculators_patches.several import Several, addresses

    listed = self.vllm_endpoint
    if len(addresses(listed)) < 2:
        return _once(self, *args)
    producers = vars(self).get("_producer")
    if producers is None:  # wait_for_producer is not applied: nobody waits
        producers = self._producer = Several(addresses(listed), 0.0)
    clients = vars(self).setdefault("_clients", {})
    prompt = args[-2]["input_ids"].tolist()
    with producers.turn(prompt, partial(_discard, self.transfer)) as url:
        self.vllm_endpoint, self.client = url, clients.pop(url, None)
        try:
            sample = _once(self, *args)
        finally:
            # Without one the next request to it looks anew who answers there.
            self.vllm_endpoint = listed
        clients[url] = self.client
        return sample


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _once
    _once = originals[_ONCE]
    return {_ONCE: generate_once}
