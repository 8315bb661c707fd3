"""The pocket LM: a small decoder trained on the catalogue's own train sessions, saved as a Hugging Face checkpoint.

It stands in where the config names no LLM, so that the whole product runs offline: vLLM loads it like any other
model. Architecture Qwen3, byte-level BPE learned from the item texts, ChatML template. It never sees validation or
test sessions. An example is a prefix of a train session in the very prompt of a perspective, answered by the next
item (perspectives anchored to `local`) or by a random later one (anchored to `global`); the loss covers the session's
lines as well, so each example teaches as many next items as its session has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from llm4sbr_ray.config import LONG_TERM, SHORT_TERM, Perspective, Perspectives
from llm4sbr_ray.perspectives.prompts import messages

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_POSITIONS = 2048


def train_pocket_lm(
    titles: Sequence[str],
    sessions: Sequence[Sequence[int]],
    config: Perspectives,
    seed: int,
    folder: Path,
) -> Generator[str, None, dict[str, float]]:
    """Learn the tokenizer and the model; save both to `folder`. Yields lines of progress.

    Parameters
    ----------
    titles
        V lines of text, one an item, as prompts show them.
    sessions
        Train sessions, item indices in click order, at least 2 each.
    seed
        Determines weights and examples. Same seed, machine and thread count: same model, unless
        `pocket.max_seconds` cuts training short.

    Returns
    -------
    dict
        parameters, steps, tokens, seconds, loss (nats a token, mean of the last tenth of the steps).
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = _train_tokenizer(titles, config)
    pocket = config.pocket
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=pocket.width,
            intermediate_size=pocket.width * 3,
            num_hidden_layers=pocket.layers,
            num_attention_heads=pocket.heads,
            num_key_value_heads=pocket.heads,
            head_dim=max(32, pocket.width // pocket.heads),  # vLLM's CPU attention takes 32 and up
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            initializer_range=0.05,  # the default of 0.02 suits widths of thousands
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    began = time.monotonic()
    parts = _prompt_parts(tokenizer, titles, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=pocket.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, pocket.learning_rate, pocket.steps, pct_start=0.1)
    losses: list[float] = []
    tokens = 0
    model.train()
    for step in range(1, pocket.steps + 1):
        ids_BL, labels_BL, used = _batch(parts, sessions, config, rng)
        # No attention mask: padding stands at the end, where causal attention never looks, and has no label.
        loss = model(input_ids=ids_BL, labels=labels_BL).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        tokens += used
        seconds = time.monotonic() - began
        if step % max(1, pocket.steps // 10) == 0:
            loss_now = np.mean(losses[-20:])
            yield (f"step {step}/{pocket.steps}, loss {loss_now:.3f}, {tokens / seconds:,.0f} tokens/s")
        if seconds > pocket.max_seconds:
            yield (f"stopped at step {step} of {pocket.steps}: perspectives.pocket.max_seconds is over")
            break
    model.eval()
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": len(losses),
        "tokens": tokens,
        "train_seconds": round(time.monotonic() - began, 1),
        "loss": round(float(np.mean(losses[-max(1, len(losses) // 10) :])), 4),
    }


def pocket_views(config: Perspectives) -> list[Perspective]:
    """The questions it learns: the first of each anchor, so that a further perspective leaves the model as it is."""
    free = [view for view in config.views if view.output == "text" and view.level == "session"]
    views = free or [LONG_TERM, SHORT_TERM]
    first = {view.anchor: view for view in reversed(views)}
    return [view for view in views if first[view.anchor] is view]


def _train_tokenizer(titles: Sequence[str], config: Perspectives) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.pocket.vocab,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The fixed parts of the prompts are repeated until they are few tokens each; numbers stand at each line's start.
    fixed = [view.instruction for view in pocket_views(config)] * 50 + [f"\n{n}. " for n in range(100)] * 50
    bpe.train_from_iterator([*titles, *fixed, *["system\n", "user\n", "assistant\n"] * 50], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        model_max_length=MAX_POSITIONS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@dataclass
class _Parts:
    """Token ids of what prompts are made of, so that a batch is concatenation and not tokenisation."""

    heads: list[list[int]]  # a view each: all that stands before the first line
    numbered: Callable[[int, int], list[int]]  # (line number, item) -> the line
    titles: list[list[int]]  # as answers
    tail: list[int]  # from the session's end to the answer's start
    end: list[int]
    pad: int


def _prompt_parts(tokenizer: PreTrainedTokenizerFast, titles: Sequence[str], config: Perspectives) -> _Parts:
    """Split the rendered prompt at its titles.

    Byte-level BPE does not merge across a line break followed by a digit, nor across ". " and a word, so a prompt's
    tokens are the concatenation of these parts' tokens up to rare merges, which do no harm in training.
    """
    marker = "\x00"
    heads = []
    for view in pocket_views(config):
        text = tokenizer.apply_chat_template(messages(view, [marker]), tokenize=False, add_generation_prompt=True)
        head, tail = text.split("1. " + marker)
        heads.append(tokenizer.encode(head, add_special_tokens=False))
    first = [tokenizer.encode(f"{n}.", add_special_tokens=False) for n in range(1, config.max_items + 1)]
    line_break = tokenizer.encode("\n", add_special_tokens=False)
    spaced = [tokenizer.encode(" " + title, add_special_tokens=False) for title in titles]
    plain = [tokenizer.encode(title, add_special_tokens=False) for title in titles]

    def numbered(n: int, item: int) -> list[int]:
        return [*(line_break if n > 1 else []), *first[n - 1], *spaced[item]]

    tail_ids = tokenizer.encode(tail, add_special_tokens=False)
    return _Parts(heads, numbered, plain, tail_ids, [int(tokenizer.eos_token_id)], int(tokenizer.pad_token_id))


def _batch(
    parts: _Parts, sessions: Sequence[Sequence[int]], config: Perspectives, rng: np.random.Generator
) -> tuple[Tensor, Tensor, int]:
    rows: list[tuple[list[int], int]] = []
    views = pocket_views(config)
    for row in range(config.pocket.batch_size):
        view = row % len(views)
        session = sessions[int(rng.integers(len(sessions)))]
        cut = int(rng.integers(1, len(session)))
        target = cut if views[view].anchor == "local" else int(rng.integers(cut, len(session)))
        shown = session[max(0, cut - config.max_items) : cut]
        lines = [token for n, item in enumerate(shown, start=1) for token in parts.numbered(n, item)]
        ids = parts.heads[view] + lines + parts.tail + parts.titles[session[target]] + parts.end
        rows.append((ids[:MAX_POSITIONS], len(parts.heads[view])))
    longest = max(len(ids) for ids, _ in rows)
    ids_BL = torch.full((len(rows), longest), parts.pad)
    labels_BL = torch.full((len(rows), longest), -100)  # the index that the loss leaves out
    for row, (ids, head) in enumerate(rows):
        ids_BL[row, : len(ids)] = torch.tensor(ids)
        labels_BL[row, head : len(ids)] = ids_BL[row, head : len(ids)]
    return ids_BL, labels_BL, sum(len(ids) for ids, _ in rows)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """The saved checkpoint as file name -> content, to be written to any storage."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
