"""For `speculators/train/data.py` and the schema."""

import time

import openai


def state(self, producer_wait):
    self.producer_wait = producer_wait
    # When the server was first found to be down, None while it answers.
    self._down_since: float | None = None


def _generate_hidden_states(
    self,
    dataset_item: dict,
    client_item: ClientItem,
) -> dict[str, torch.Tensor]:
    """Generate one sample; wait for a server that can't be reached.

    The time that it may be down counts from the last sample that was had, so it
    is waited for once, not once for every attempt and every sample.
    """
    pause, warned = 1.0, float("-inf")
    while True:
        try:
            sample = self._generate_hidden_states_once(dataset_item, client_item)
        except openai.APIConnectionError as error:
            if isinstance(error, openai.APITimeoutError):
                raise
            now = time.monotonic()
            if self._down_since is None:
                self._down_since = now
            waited = now - self._down_since
            if waited >= self.producer_wait:
                raise
            if now - warned >= 60:  # noqa: PLR2004
                warned = now
                logger.warning(
                    "%s can't be reached (%s); waiting for it, %.0f of %.0f s",
                    self.vllm_endpoint,
                    error,
                    waited,
                    self.producer_wait,
                )
            self.client = None  # asks again who answers there
            time.sleep(min(pause, self.producer_wait - waited))
            pause = min(10.0, 2 * pause)
        else:
            self._down_since = None
            return sample


def field_of_the_schema():
    producer_wait: float = Field(
        default=300.0,
        ge=0,
        description="Seconds to wait for a vLLM that can't be reached before samples "
        "are given up. Only applies if --on-missing=generate. With several ranks, "
        "keep it below the process group's timeout (10 minutes with NCCL).",
    )
