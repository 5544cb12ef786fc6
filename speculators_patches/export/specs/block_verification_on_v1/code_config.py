"""For vLLM's `config/vllm.py`."""


def block_is_unsupported(self, unsupported):
    # V1's rejection sampler would verify token by token, and its proposer
    # would draft greedily whatever draft_sample_method says.
    if self.speculative_config.rejection_sample_method == "block":
        unsupported.append("rejection_sample_method='block'")
