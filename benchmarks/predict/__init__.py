"""What a drafter will be worth, from the body's own answers, before anything is served or trained.

The body writes answers at the temperature of service; an extraction server gives its hidden states
at every position; the drafter, loaded as upstream loads it, drafts from each of them. From both
distributions follows what vLLM's verification accepts, in expectation:

- greedy drafts (vLLM's default): the drafter's best token x is accepted with probability p(x);
- probabilistic drafts: a token drawn from q is accepted with probability sum_v min(p(v), q(v))
  (Leviathan et al. 2022, arXiv:2211.17192).

p is what is served: softcap, temperature, the body's own top-k and top-p. q is the drafter's
softmax at the same temperature, as vLLM 0.32 draws from it.

- `distributions`: p and q, and the measures between them (torch).
- `walk`: from acceptance at each start to what a bench counts (numpy).
- `answers`: the body's answers and hidden states, from a real vLLM server.
- `drafting`: the drafter's logits at every start and depth, rolled out as in serving.
- `evaluate`: both together, one row an answer; `report`: sums, intervals, costs, the bench's error.
- `verdict`: train, do not train, or change the serving flags first.
"""
