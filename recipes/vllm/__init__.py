"""The parts of `recipes.vllm_server`: what to start, how it is kept, what is asked of it."""
