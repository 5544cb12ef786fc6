"""A tiny Gemma 4 body with an invented world to talk about, and its abliteration.

Nothing heavy is imported here. The parts:

- ``world``, ``corpus``: the invented facts, the prompts and their answers (pure Python);
- ``tokenizer``: a real fast tokenizer with Gemma's turn markers and chat template;
- ``body``: trains the body and publishes it as a folder that vLLM and transformers load;
- ``directions``: the abliteration arithmetic, which serves a real Gemma 4 too;
- ``abliterate``: the layer search and the abliterated folder of the miniature;
- ``refusals``: what counts as a refusal and as a right answer, and the report over prompts.

``make_body``, ``make_abliterated`` and ``prompts`` are what a stage calls.
"""
