"""Do two engines say the same? Greedy answers compared token by token, and an excuse only where the logits nearly tie.

The rule: both engines compute in float32 and get the same prompt tokens. The first token that differs is excused only
if, at that place, a float64 run of the model puts the two best logits less than 1e-4 apart: there the rounding of
float32 may decide either way. What follows a difference has another prefix and is not compared. Excuses are counted
and printed.
"""

import http.client
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from labkit.errors import LabkitError
from labkit.servers.launch import HOST, ServerError

__all__ = ["Agreement", "check_agreement", "format_agreement", "load_completion", "load_tie_gap"]

MAX_TIE_GAP = 1e-4


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was compared: whole answers that agree, tokens compared, and each difference (answer, place, gap).

    `excused` and `broken` hold (number of the answer, place of the first difference, float64 gap between the best two
    logits there). `is_agreed` is True when nothing is broken.
    """

    num_answers: int
    num_equal: int
    num_tokens_compared: int
    excused: tuple[tuple[int, int, float], ...]
    broken: tuple[tuple[int, int, float], ...]

    @property
    def is_agreed(self) -> bool:
        """Whether every difference is excused."""
        return not self.broken


def check_agreement(
    a: Sequence[Sequence[int]],
    b: Sequence[Sequence[int]],
    *,
    prompts: Sequence[Sequence[int]],
    tie_gap: Callable[[Sequence[int], int, int], float],
) -> Agreement:
    """Compare the greedy answers `a` and `b` (token ids, one sequence per prompt) by the rule of this module.

    `tie_gap(prefix, token_a, token_b)` returns the float64 gap between the two best logits after `prefix` (prompt and
    common answer), infinity unless the two tokens are these two best; `load_tie_gap` makes one. A difference in
    length where one answer is the beginning of the other has no excuse (gap infinity).
    """
    if not len(a) == len(b) == len(prompts):
        raise LabkitError(
            f"{len(a)} and {len(b)} answers to {len(prompts)} prompts.", next_step="Give one answer each."
        )
    num_equal = num_tokens = 0
    excused, broken = [], []
    for number, (left, right, prompt) in enumerate(zip(a, b, prompts, strict=True)):
        left, right = list(left), list(right)
        place = next((k for k, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
        num_tokens += min(len(left), len(right)) if place is None else place + 1
        if place is None and len(left) == len(right):
            num_equal += 1
            continue
        if place is None:
            broken.append((number, min(len(left), len(right)), float("inf")))
            continue
        gap = tie_gap([*prompt, *left[:place]], left[place], right[place])
        (excused if gap < MAX_TIE_GAP else broken).append((number, place, gap))
    return Agreement(len(a), num_equal, num_tokens, tuple(excused), tuple(broken))


def format_agreement(agreement: Agreement, *, names: tuple[str, str] = ("A", "B")) -> str:
    """Write the comparison as text: the counts, then one line per difference."""
    lines = [
        f"{names[0]} and {names[1]}: {agreement.num_equal} of {agreement.num_answers} answers equal, "
        f"{agreement.num_tokens_compared} tokens compared, {len(agreement.excused)} differences excused (a tie), "
        f"{len(agreement.broken)} not."
    ]
    for word, rows in (("excused", agreement.excused), ("NOT excused", agreement.broken)):
        lines += [f"  answer {number}, token {place}: {word}, gap {gap:.2g}" for number, place, gap in rows]
    return "\n".join(lines)


def load_tie_gap(folder) -> Callable[[Sequence[int], int, int], float]:
    """Return a `tie_gap` for `check_agreement`, from the model in `folder` (or a `Model`), loaded in float64 at first
    use.
    """
    loaded = []

    def tie_gap(prefix: Sequence[int], token_a: int, token_b: int) -> float:
        import torch

        if not loaded:
            from transformers import AutoModelForCausalLM

            path = str(getattr(folder, "path_or_id", folder))
            loaded.append(
                AutoModelForCausalLM.from_pretrained(
                    path, dtype=torch.float64, use_safetensors=True, trust_remote_code=False
                ).eval()
            )
        with torch.inference_mode():
            logits = loaded[0](torch.tensor([list(prefix)])).logits[0, -1]  # (V,)
        best = logits.topk(2)
        if {token_a, token_b} != set(best.indices.tolist()):
            return float("inf")
        return float(best.values[0] - best.values[1])

    return tie_gap


def load_completion(
    server, prompt_ids: Sequence[int], *, num_tokens: int, timeout_s: float = 300.0, **fields
) -> list[int]:
    """Ask a `Server` for exactly `num_tokens` greedy tokens after `prompt_ids` and return their ids.

    The length is fixed (`ignore_eos`, `min_tokens`); another length, or another number of prompt tokens in the answer's
    usage, is a ServerError. `fields` are added to the request.
    """
    body = {"model": server.model, "prompt": [int(token) for token in prompt_ids], "temperature": 0}
    body |= {"max_tokens": num_tokens, "min_tokens": num_tokens, "ignore_eos": True, "return_token_ids": True, **fields}
    connection = http.client.HTTPConnection(HOST, server.port, timeout=timeout_s)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    finally:
        connection.close()
    if response.status != 200:
        raise ServerError(f"{server.engine} answered {response.status}: {text[:300]}", next_step="Check the request.")
    answer = json.loads(text)
    ids, usage = answer["choices"][0].get("token_ids") or [], answer["usage"]
    if usage["prompt_tokens"] != len(prompt_ids) or len(ids) != num_tokens:
        raise ServerError(
            f"{server.engine} read {usage['prompt_tokens']} prompt tokens of {len(prompt_ids)} and returned {len(ids)} "
            f"output tokens of {num_tokens}.",
            next_step="The work is not the same: do not compare these answers.",
        )
    return ids
