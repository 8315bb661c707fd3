"""Sessions and items as text: what the LLM reads.

Static instruction first, the session last, so that an engine with prefix caching computes the instruction once and a
growing session only at its end. Titles are other people's text: one line each, no control characters, bounded length.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from llm4sbr_ray.config import Perspective, Perspectives

UNTITLED = "(an item without a title)"  # never an id: ids must not reach a model as text


def clean_title(title: str | None, attributes: Sequence[str] | None, max_chars: int) -> str:
    """One line for one item.

    The title and those attributes that it does not already hold; without a title the attributes alone. White space is
    folded, other control characters are dropped, the whole is cut at `max_chars`.
    """
    title = title or ""
    known = title.casefold()
    parts = [title, *(a for a in attributes or () if a.casefold() not in known)]
    text = " ".join(" - ".join(part for part in parts if part).split())
    text = " ".join("".join(c for c in text if c.isprintable()).split())  # again: what was dropped stood between spaces
    return text[:max_chars].rstrip() or UNTITLED


def session_text(titles: Sequence[str], candidates: Sequence[str] = ()) -> str:
    """Numbered titles in click order, a line each; then the candidates, which a growing session changes."""
    clicked = "\n".join(f"{n}. {title}" for n, title in enumerate(titles, start=1))
    return clicked + ("\n\nCandidates:\n" + "\n".join(map(candidate_line, candidates)) if candidates else "")


def candidate_line(title: str) -> str:
    return f"- {title}"


def instruction(view: Perspective, choices: Sequence[str] = ()) -> str:
    """What stands before each session of a perspective."""
    return view.instruction + (f"\nAnswer with one of: {'; '.join(choices)}" if choices else "")


def messages(
    view: Perspective, titles: Sequence[str], choices: Sequence[str] = (), candidates: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The chat that asks one perspective about one session."""
    return [
        {"role": "system", "content": instruction(view, choices)},
        {"role": "user", "content": session_text(titles, candidates)},
    ]


def control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the texts that a tokenizer reads as tokens of their own, such as the chat template's <|im_end|>."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    named = sorted((text for text in added if len(text.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, named))) if named else None


def neutralise(title: str, tokens: re.Pattern[str] | None) -> str:
    """Break what a tokenizer would read as a control token: a title must not end the message that quotes it."""
    return title if tokens is None else tokens.sub(lambda found: f"{found[0][0]} {found[0][1:]}", title)


def prompt_key(
    model: str,
    perspectives: Perspectives,
    view: Perspective,
    titles: Sequence[str],
    choices: Sequence[str] = (),
    candidates: Sequence[str] = (),
) -> str:
    """128-bit hex digest of all that determines an answer: model, sampling, instruction, session text, output form.

    Two samples with one key are asked once.
    """
    sampling = perspectives.sampling_of(view).model_dump_json()
    parts = [model, sampling, instruction(view, choices), session_text(titles, candidates)]
    if view.output != "text":
        parts.append(view.output.model_dump_json())
    text = "\x1f".join(parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
