"""A LoRA adapter over `perspectives.model`, as Ray's vLLM stage takes it.

`perspectives.lora` is a Hugging Face name, a path that every node can read, or the URI of a folder. The stage knows an
adapter by a name in each row, and looks for it below one folder where that lies in a bucket.
"""

from __future__ import annotations

from typing import Any, get_args

from llm4sbr_ray.artifacts import Store


def adapter_name(lora: str) -> str:
    """What a row calls the adapter."""
    return lora.rstrip("/").rsplit("/", 1)[-1] if "://" in lora else lora


def adapter_folder(lora: str) -> str | None:
    """Where the adapters of a bucket lie; None where vLLM finds the adapter by its name."""
    # Ray reads it with pyarrow, rather than a client of one cloud, if its URI begins so.
    return f"pyarrow-{lora.rstrip('/').rsplit('/', 1)[0]}" if "://" in lora else None


def engine_settings(lora: str) -> dict[str, Any]:
    """Settings of vLLM: room for this adapter alone, and its rank where that can be read (else vLLM's default)."""
    from vllm.config.lora import MaxLoRARanks

    settings: dict[str, Any] = {"enable_lora": True, "max_loras": 1}
    folder = Store(lora)
    if folder.exists("adapter_config.json"):
        rank = int(folder.read_json("adapter_config.json")["r"])
        settings["max_lora_rank"] = min(room for room in get_args(MaxLoRARanks) if room >= rank)
    return settings
