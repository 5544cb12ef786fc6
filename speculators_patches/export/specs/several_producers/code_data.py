"""For `speculators/train/data.py`."""

import openai
import torch


def state(self, vllm_endpoint, EndpointRotation):  # noqa: N803
    self.endpoints = EndpointRotation(vllm_endpoint)
    self._clients: dict[str, openai.OpenAI | None] = {}


def _generate_hidden_states(
    self,
    dataset_item: dict,
    client_item: ClientItem,
) -> dict[str, torch.Tensor]:
    """Generate one sample with the server whose turn it is."""
    url = self.endpoints.next()
    self.vllm_endpoint, self.client = url, self._clients.get(url)
    try:
        sample = self._generate_hidden_states_once(dataset_item, client_item)
    except openai.APIConnectionError:
        self.endpoints.failed(url)
        raise
    finally:
        self._clients[url] = self.client
    self.endpoints.answered(url)
    return sample
