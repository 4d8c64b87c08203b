"""The process that llama.cpp runs in: reads a request (JSON), writes the answer (JSON); see `llama_cpp.run`."""

import importlib
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

GREEDY = {"temperature": 0, "cache_prompt": True}


def main(request: Path, answer: Path) -> None:
    """Serve the one request."""
    wanted = json.loads(request.read_text(encoding="utf-8"))
    server = _load(wanted)
    post = _poster(server.listening_address)
    # What is listed is the model's own; what is taken is made a plain letter, as nothing is listed for the end of an
    # answer or half a character.
    letter = post("/tokenize", {"content": "a", "add_special": False})["tokens"][-1]
    taken = {"n_predict": 1, "n_probs": wanted["listed"], "logit_bias": [[letter, 1e4]]}
    result = {
        "scored": [_listed(post("/completion", {**GREEDY, **taken, "prompt": each})) for each in wanted["scored"]],
        "generated": [
            post("/completion", {**GREEDY, "prompt": tokens, "n_predict": count, "return_tokens": True})["tokens"]
            for tokens, count in wanted["generated"]
        ],
        "tokens": [
            post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
            for text in wanted["texts"]
        ],
        "chats": [post("/apply-template", {"messages": messages})["prompt"] for messages in wanted["chats"]],
    }
    answer.write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # its threads need not be waited for


def _listed(answer: dict[str, Any]) -> list[tuple[int, float]]:
    """The likeliest tokens and their log-probabilities."""
    return [(each["id"], each["logprob"]) for each in answer["completion_probabilities"][0]["top_logprobs"]]


def _load(wanted: dict[str, Any]) -> Any:
    """The server over the model: on the CPU, one question at a time, with nothing rounded but the weights."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # whose types are not declared
    params = xllamacpp.CommonParams()
    params.model.path = wanted["model"]
    if wanted["adapter"] is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(wanted["adapter"], 1.0)]
    params.n_ctx = wanted["context"]
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = params.fit_params = False
    params.use_jinja = True
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted["threads"]
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"{error}")


def _poster(address: str) -> Any:
    """What asks the server (on 127.0.0.1) for what has no function of its own."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(path: str, body: dict[str, Any]) -> Any:
        content = {"Content-Type": "application/json"}
        asked = urllib.request.Request(address + path, json.dumps(body).encode(), content)
        try:
            with opener.open(asked) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            sys.exit(f"it answers {error.read().decode()}")

    return post


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
