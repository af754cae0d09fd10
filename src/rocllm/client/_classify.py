"""What comes next after a prompt, from one forward pass. No I/O.

Names and meanings of the fields: tools/server/README.md of llama.cpp, checked with b11434.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rocllm.client._wire import Call, checked_ids, encode_json
from rocllm.results import NextToken, Token, Usage

# Added to the logits of the candidates. It cancels out among them, and no other token comes near:
# the logits of models lie within some 60 of each other. More would cost digits, a logit being a
# float of 32 bits: at 100 it keeps 7.6e-6.
_LIFT = 100
# Texts that stand in for a token that the server would hold back, the next where one is a candidate
# itself, and how far above the others: so far that it is the one that is drawn, and not so far that
# theirs are 0 as floats of 32 bits.
STAND_INS, _ABOVE = ("\n", "a"), 30
# Tokens that it may be: some tokenizers put a space before a text, or have bytes only.
_STAND_IN_TOKENS = 4


def next_token(
    prompt: str | Sequence[int],
    then: Sequence[int],
    among: Sequence[int],
    top_k: int,
    *,
    stand_in: str | None = None,
) -> Call[NextToken]:
    """The tokens that may follow `prompt` and the tokens `then`, with their log probabilities.

    Without candidates in `among`, those of the `top_k` likeliest, as the model gives them
    (`n_probs`: before any sampler). With candidates, those of all of them, and as if there were no
    other tokens: lifted by a common bias they are the `top_k` of the only sampler, and the server
    tells the probabilities after it. It sorts the candidates and not the vocabulary.

    When the token that is drawn is a part of a character, the server waits for the rest and tells
    no probabilities; the answer has no token then (`process_token` in server-context.cpp, b11434).
    stand_in: have this drawn in its place. Where it is one of the candidates, the answer has no
    token either, but for the last of `STAND_INS`, with which it is an error.
    """
    body: dict[str, Any] = {
        "prompt": _prompt(prompt, then),
        "n_predict": 1,
        "cache_prompt": True,
        "response_fields": ("completion_probabilities", "tokens_evaluated", "timings/cache_n"),
    }
    bias: list[tuple[int | str, int]] = [(stand_in, _LIFT + _ABOVE)] if stand_in else []
    if among:
        candidates = checked_ids(among)
        # What gets in beside the candidates counts for nothing.
        room = len(candidates) + (_STAND_IN_TOKENS if stand_in else 0)
        body |= {
            "temperature": 1,
            "samplers": ("top_k",),
            "top_k": room,
            "n_probs": room,
            "post_sampling_probs": True,
        }
        bias += [(token, _LIFT) for token in candidates]
    else:
        body |= {"temperature": 0, "n_probs": top_k}
    if bias:
        body["logit_bias"] = bias
    return Call(
        "next token",
        "POST",
        "/completion",
        lambda answer: _decode(answer, frozenset(among), stand_in=stand_in),
        encode_json(body),
        queued=True,
    )


def _prompt(prompt: str | Sequence[int], then: Sequence[int]) -> object:
    checked: str | list[int] = prompt if isinstance(prompt, str) else checked_ids(prompt)
    if not then:
        return checked
    # Text and ids together (`tokenize_mixed`, tools/server/server-common.cpp, b11434).
    return [checked, *then] if isinstance(checked, str) else [*checked, *then]


def _decode(answer: Any, among: frozenset[int], *, stand_in: str | None) -> NextToken:
    usage = Usage(int(answer["tokens_evaluated"]), 1, int(answer["timings/cache_n"]))
    drawn = answer.get("completion_probabilities")
    if not drawn or (stand_in and drawn[0]["id"] in among):
        if stand_in == STAND_INS[-1]:
            raise ValueError("what is drawn is a part of a character, or a candidate")
        return NextToken((), usage)
    (told,) = drawn
    if among:
        # A candidate that is not in the list has a probability that a float of 32 bits does not.
        found = [entry for entry in told["top_probs"] if entry["id"] in among and entry["prob"] > 0]
        total = math.fsum(entry["prob"] for entry in found)
        top = [_token(entry, math.log(entry["prob"] / total)) for entry in found]
    else:
        top = [_token(entry, float(entry["logprob"])) for entry in told["top_logprobs"]]
    if not top:
        raise ValueError("no token is likely")
    return NextToken(tuple(top), usage)


def _token(entry: Any, logprob: float) -> Token:
    return Token(int(entry["id"]), bytes(entry["bytes"]).decode(errors="replace"), logprob)
