"""Do two engines generate the same tokens? Greedy answers compared token by token; only a near tie is an excuse.

The rule: both engines compute in float32 and get the same prompt tokens. The first token that differs is excused only
if a float64 run of the model puts the two best logits there less than 1e-4 apart: the rounding of float32 may then
decide either way. What follows a difference has another prefix and is not compared. Excuses are counted and printed.
"""

import http.client
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from labkit.errors import LabkitError
from labkit.servers.server import HOST, ServerError

__all__ = ["TokenComparison", "compare_tokens", "format_token_comparison", "load_completion", "load_tie_gap"]

MAX_TIE_GAP = 1e-4


@dataclass(frozen=True, slots=True)
class TokenComparison:
    """What was compared, and the first difference of each answer as (answer number, token position, gap).

    The gap is the float64 difference between the two best logits there, infinity if a tie cannot explain it.

    Attributes:
        num_answers: pairs of answers.
        num_equal: pairs that are equal from the first to the last token.
        num_tokens_compared: tokens up to each first difference, and that one.
        excused: differences with a gap below 1e-4.
        unexcused: all other differences.
    """

    num_answers: int
    num_equal: int
    num_tokens_compared: int
    excused: tuple[tuple[int, int, float], ...]
    unexcused: tuple[tuple[int, int, float], ...]

    @property
    def is_equal(self) -> bool:
        """Whether every difference is excused."""
        return not self.unexcused


def compare_tokens(
    a: Sequence[Sequence[int]],
    b: Sequence[Sequence[int]],
    *,
    prompts: Sequence[Sequence[int]],
    tie_gap: Callable[[Sequence[int], int, int], float],
) -> TokenComparison:
    """Compare the greedy answers `a` and `b` (token ids, one sequence per prompt) by the rule of this module.

    `tie_gap(prefix, token_a, token_b)` returns the float64 gap between the two best logits after `prefix` (prompt and
    common answer), infinity unless the two tokens are those two best; `load_tie_gap` makes one. If one answer is the
    beginning of the other, the difference is not excused (gap infinity). LabkitError for unequal numbers of answers.
    """
    if not len(a) == len(b) == len(prompts):
        raise LabkitError(
            f"{len(a)} and {len(b)} answers to {len(prompts)} prompts.", next_step="Pass one answer per prompt."
        )
    num_equal = num_tokens = 0
    excused, unexcused = [], []
    for number, (left, right, prompt) in enumerate(zip(a, b, prompts, strict=True)):
        left, right = list(left), list(right)
        length = min(len(left), len(right))
        position = next((k for k in range(length) if left[k] != right[k]), length)
        num_tokens += min(position + 1, length)
        if left == right:
            num_equal += 1
            continue
        has_two = position < length  # tokens to compare; otherwise one answer is the beginning of the other
        gap = tie_gap([*prompt, *left[:position]], left[position], right[position]) if has_two else float("inf")
        (excused if gap < MAX_TIE_GAP else unexcused).append((number, position, gap))
    return TokenComparison(len(a), num_equal, num_tokens, tuple(excused), tuple(unexcused))


def format_token_comparison(comparison: TokenComparison, *, names: tuple[str, str] = ("A", "B")) -> str:
    """Write the comparison as text: the counts, then one line per difference."""
    lines = [
        f"{names[0]} and {names[1]}: {comparison.num_equal} of {comparison.num_answers} answers equal, "
        f"{comparison.num_tokens_compared} tokens compared, {len(comparison.excused)} differences excused (a tie), "
        f"{len(comparison.unexcused)} not."
    ]
    for word, rows in (("excused", comparison.excused), ("NOT excused", comparison.unexcused)):
        lines += [f"  answer {number}, token {position}: {word}, gap {gap:.2g}" for number, position, gap in rows]
    return "\n".join(lines)


def load_tie_gap(folder) -> Callable[[Sequence[int], int, int], float]:
    """Return a `tie_gap` for `compare_tokens`, from the model in `folder` (or a `Model`), loaded in float64 at first
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

    The length is fixed (`ignore_eos`, `min_tokens`); `fields` are added to the request. ServerError for another
    length, or another number of prompt tokens in the answer's usage.
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
            next_step="Do not compare these answers: the work is not the same.",
        )
    return ids
