"""An LLM that lies in a bucket, on this machine: neither transformers nor vLLM reads from one."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs

from llm4sbr_ray.artifacts import Store

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def local_model(model: str, folder: str, weights: bool = True) -> str:
    """Where transformers or vLLM can load it from.

    Parameters
    ----------
    model
        Hugging Face name, local path, or URI of a folder.
    folder
        An empty local folder: what a URI names is copied into it.
    weights
        False: the tokenizer and the settings alone.
    """
    if "://" not in model:
        return model
    store = Store(model)
    for path in store.files():
        if weights or not path.endswith(WEIGHTS):
            target = Path(folder, path.removeprefix(store.path("")))
            target.parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(
                path, str(target), source_filesystem=store.fs, destination_filesystem=pafs.LocalFileSystem()
            )
    return folder
