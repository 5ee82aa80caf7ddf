import itertools

import pytest

from labkit.errors import LabkitError
from labkit.generation import run_generation

pytestmark = pytest.mark.slow  # torch and transformers


class Characters:
    """A tokenizer whose tokens are characters, so that the expected text is plain to see."""

    pad_token_id = 0
    eos_token_id = 0

    def __call__(self, text, return_tensors):
        import torch
        from transformers import BatchEncoding

        return BatchEncoding({"input_ids": torch.tensor([[ord(c) % 64 for c in text]])})

    def decode(self, ids):
        return "".join(chr(64 + i % 26) for i in ids)


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=48, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def greedy(model, ids, num_tokens):
    """The oracle: no cache, no generate, the whole sequence again for every token."""
    import torch

    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[0] = -torch.inf  # a fixed length means that end-of-text is never chosen
        ids = [*ids, int(logits.argmax())]
    return ids[-num_tokens:]


def test_the_tokens_are_those_of_a_greedy_loop_without_a_cache(model):
    got = run_generation(model, Characters(), "hello", num_tokens=12)
    assert list(got.token_ids) == greedy(model, [ord(c) % 64 for c in "hello"], 12)


def test_every_token_has_one_time_and_the_prompt_has_none(model):
    ticks = itertools.count()
    got = run_generation(model, Characters(), "hello", num_tokens=5, clock=lambda: float(next(ticks)))
    # Readings of the clock: the start, the prompt (not kept), then one per token.
    assert got.start_s == 0
    assert got.token_times_s == (2, 3, 4, 5, 6)
    assert len(got.token_ids) == 5


def test_the_counter_shows_the_growing_text_and_the_final_one(model):
    shown = []
    got = run_generation(model, Characters(), "hello", num_tokens=20, show=shown.append)
    assert len(shown) <= 11
    assert shown[0].startswith("2 tokens") and shown[-1] == f"20 tokens | {got.text}"


def test_more_tokens_than_positions_are_refused_with_the_numbers(model):
    with pytest.raises(LabkitError, match="5 prompt tokens and 44 output tokens need 49 positions, the model has 48"):
        run_generation(model, Characters(), "hello", num_tokens=44)


def test_no_tokens_are_refused(model):
    with pytest.raises(LabkitError, match="at least 1"):
        run_generation(model, Characters(), "hello", num_tokens=0)
