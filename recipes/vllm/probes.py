"""What a server is asked before a stage trusts it; a wrong answer is a ServerError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from recipes.vllm import hidden_state_files as files
from recipes.vllm.errors import ServerError
from recipes.vllm.mooncake_probe import probe
from recipes.vllm.sampling_check import LIMIT, Token, z_score
from recipes.vllm.spec import ServerSpec

_TEMPERATURE = 0.7
_TOKENS, _ANSWERS = 48, 3
_QUESTION = "Tell me a short story about a village."
_UNKNOWN_VOCABULARY = 200_000


def client_for(base_url: str, timeout: float = 120.0) -> httpx.Client:
    """An HTTP client for one server; a proxy of the environment is not used on this machine."""
    host = httpx.URL(base_url).host
    local = host in ("localhost", "::1") or host.startswith("127.")
    return httpx.Client(base_url=base_url, timeout=timeout, trust_env=not local)


def healthy(client: httpx.Client) -> bool:
    """Whether `/health` answers 200 now."""
    try:
        return client.get("/health", timeout=5.0).status_code == 200
    except httpx.HTTPError:
        return False


def model(client: httpx.Client, spec: ServerSpec) -> None:
    """The server serves the model that `spec` names."""
    served = [item["id"] for item in _get(client, "/v1/models")["data"]]
    if spec.model_name not in served:
        raise ServerError(
            f"The server at {client.base_url} serves {', '.join(served)}, not {spec.model_name}; "
            "give the address of one that does, or start it with --served-model-name."
        )


def version(client: httpx.Client) -> str:
    """vLLM's version, "" where the server does not tell."""
    try:
        return str(client.get("/version").json()["version"])
    except (httpx.HTTPError, ValueError, KeyError):
        return ""


def render(client: httpx.Client, spec: ServerSpec) -> None:
    """`/render` turns a conversation into token ids."""
    reply = _post(
        client,
        "/v1/chat/completions/render",
        {"model": spec.model_name, "messages": [{"role": "user", "content": _QUESTION}]},
    )
    if reply.status_code in (403, 404):
        raise ServerError(
            f"The server at {client.base_url} does not offer /render (HTTP {reply.status_code}), "
            "which preparing data needs; start it with --enable-scale-out."
        )
    if reply.status_code != 200 or not _token_ids(reply.json()):
        raise ServerError(
            f"The server at {client.base_url} could not render a conversation (HTTP "
            f"{reply.status_code}: {reply.text[:200]}); has its tokenizer a chat template?"
        )


def extraction(client: httpx.Client, spec: ServerSpec) -> tuple[int, ...]:
    """One request's hidden states arrive as a file of the right shape; the file is removed.

    Returns:
        The shape found, (tokens, layers, hidden size).
    """
    ids = [token % _vocabulary(spec) for token in range(5, 17)]
    reply = _post(
        client,
        "/v1/completions",
        {"model": spec.model_name, "prompt": ids, "max_tokens": 1, "return_token_ids": True},
    )
    if reply.status_code != 200:
        raise ServerError(
            f"The server at {client.base_url} gives no hidden states (HTTP {reply.status_code}: "
            f"{reply.text[:200]}); see its log."
        )
    answer = reply.json()
    found, finite = _from_store(client, spec, answer) or _from_file(client, answer)
    hidden = _text_config(spec).get("hidden_size", found[-1])
    layers = len(spec.extraction_layers) or found[1]
    if found != (len(ids), layers, hidden):
        raise ServerError(
            f"The server at {client.base_url} writes hidden states of shape {list(found)} "
            f"[tokens, layers, hidden size] where {[len(ids), layers, hidden]} is expected; "
            f"start it with the layers {list(spec.extraction_layers)} and the right model."
        )
    if not finite:
        raise ServerError(
            f"The server at {client.base_url} writes hidden states with infinities or NaN; its "
            f"weights or its dtype ({spec.dtype}) do not suit the model {spec.model}."
        )
    return found


def _from_file(client: httpx.Client, answer: dict[str, Any]) -> tuple[tuple[int, ...], bool]:
    """Shape of what was written, and whether it is finite."""
    path = _states_file(answer)
    if path is None:
        raise ServerError(
            f"The server at {client.base_url} gives no hidden states as a file"
            f"{' but through Mooncake' if _handle(answer) else ''}; "
            "start it with --speculative-config method extract_hidden_states and a "
            "--kv-transfer-config, as `plan` prints them."
        )
    try:
        files.wait_until_written(path)
        return files.shapes(path)["hidden_states"], files.is_finite(path, "hidden_states")
    except (TimeoutError, OSError, KeyError, ValueError) as error:
        raise ServerError(
            f"The server at {client.base_url} says that it wrote {path}, but it cannot be read "
            f"here ({type(error).__name__}: {error}); is the folder shared with this machine?"
        ) from None
    finally:
        files.discard(path)


def _from_store(
    client: httpx.Client, spec: ServerSpec, answer: dict[str, Any]
) -> tuple[tuple[int, ...], bool] | None:
    """As `_from_file`; None: the server is to write files."""
    store = spec.extraction_store
    if store is None:
        return None
    if not _handle(answer):
        raise ServerError(
            f"The server at {client.base_url} gives no hidden states through Mooncake"
            f"{' but as files' if _states_file(answer) else ''}; start it with the "
            "--kv-transfer-config that `plan` prints, or set transfer=file."
        )
    found = probe(store.master, answer["kv_transfer_params"])
    if "error" in found:
        raise ServerError(
            f"The server at {client.base_url} says that it put hidden states into the Mooncake "
            f"store of {store.master}, but they cannot be had here: {found['error']}; can this "
            "machine reach the server's, and do both use one master?"
        )
    return tuple(found["shape"]), bool(found["finite"])


def sampling(client: httpx.Client, spec: ServerSpec) -> float:
    """Answers at T = 0.7 are as likely as sampling makes them (see sampling_check).

    Returns:
        The z score found; above -6.
    """
    reply = _post(
        client,
        "/v1/chat/completions",
        {
            "model": spec.model_name,
            "messages": [{"role": "user", "content": _QUESTION}],
            "temperature": _TEMPERATURE,
            # The model's own generation_config may ask for others; these switch them off.
            "top_p": 1.0,
            "top_k": -1,
            "max_tokens": _TOKENS,
            "n": _ANSWERS,
            "logprobs": True,
            "top_logprobs": 20,
        },
    )
    if reply.status_code != 200:
        raise ServerError(
            f"The server at {client.base_url} does not answer a chat request at T = "
            f"{_TEMPERATURE} (HTTP {reply.status_code}: {reply.text[:200]})."
        )
    answer = reply.json()
    tokens = [
        Token(float(item["logprob"]), tuple(float(top["logprob"]) for top in item["top_logprobs"]))
        for choice in answer["choices"]
        for item in choice["logprobs"]["content"]
    ]
    text = answer["choices"][0]["message"]["content"] or ""
    path = _states_file(answer)
    if path is not None:  # an extraction server: one file for each of the answers
        for lock in path.parent.glob(f"*{answer['id']}*.lock"):
            files.discard_when_written(lock.with_suffix(""))
    found = z_score(tokens, _TEMPERATURE, _vocabulary(spec))
    if found < LIMIT:
        raise ServerError(
            f"The server at {client.base_url} answers garbage at T = {_TEMPERATURE} (z = "
            f"{found:.0f}; it begins {text[:60]!r}); if it runs on a CPU, start it with the patch "
            "vllm_cpu_sampling (python -m speculators_patches run --only vllm_cpu_sampling ...)."
        )
    return found


def _get(client: httpx.Client, path: str) -> Any:
    try:
        reply = client.get(path)
        if reply.status_code == 401:
            raise ServerError(
                f"The server at {client.base_url} wants an API key, and upstream's clients send "
                "none: start it without --api-key and VLLM_API_KEY, on a network of yours alone."
            )
        reply.raise_for_status()
        return reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ServerError(
            f"{client.base_url}{path.lstrip('/')} does not answer as vLLM does ({error}); check "
            "the address and that the server runs."
        ) from None


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    try:
        return client.post(path, json=body)
    except httpx.HTTPError as error:
        raise ServerError(
            f"The server at {client.base_url} did not answer {path} ({type(error).__name__}: "
            f"{error}); see its log."
        ) from None


def _token_ids(rendered: Any) -> list[int]:
    """The ids in what `/render` answers: a request, or a list of them."""
    first = rendered[0] if isinstance(rendered, list) and rendered else rendered
    ids = first.get("token_ids") if isinstance(first, dict) else None
    return ids if isinstance(ids, list) else []


def _states_file(answer: dict[str, Any]) -> Path | None:
    path = (answer.get("kv_transfer_params") or {}).get("hidden_states_path")
    return Path(path) if path else None


def _handle(answer: dict[str, Any]) -> str:
    """The key of what lies in a Mooncake store, "" if nothing does."""
    return str((answer.get("kv_transfer_params") or {}).get("handle") or "")


def _text_config(spec: ServerSpec) -> dict[str, Any]:
    """The model's text config where it is a folder on this machine, else {}."""
    try:
        config = json.loads((Path(spec.model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config.get("text_config") or config


def _vocabulary(spec: ServerSpec) -> int:
    return int(_text_config(spec).get("vocab_size", _UNKNOWN_VOCABULARY))
