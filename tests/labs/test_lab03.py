"""Lab 03: the second decoder against Transformers, the exact probabilities of a sampler, and what its checks call."""

import json

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # every test here computes with torch

from labkit.checks import learner  # noqa: E402
from labkit.checks.judge import judge  # noqa: E402
from labkit.checks.mistakes import load_mistakes  # noqa: E402
from labkit.checks.reference import load_reference, make_names  # noqa: E402
from labkit.environment import find_lab_folder, load_lab_module  # noqa: E402
from labkit.models.decoder import load_weights  # noqa: E402

checks = load_lab_module("03", "checks")
second = load_lab_module("03", "second_decoder")
draws = load_lab_module("03", "draws")
EXERCISES = [f"03.{k}" for k in range(1, 6)]
SIZES = second.make_config(24, 40, 37, 3, 6, 2, 10)


def answer(exercise, code=None):
    reference = load_reference(exercise)
    return eval(reference.answer, make_names(reference, code))


def make_functions(exercise, body):
    """The answer to an exercise whose functions all have this body."""
    names = {"calls": []}
    reference = load_reference(exercise)
    for name in reference.answer_names:
        exec(compile(f"def {name}(*args, **kwargs):\n    {body}\n", "<cell>", "exec"), names)
    return eval(reference.answer, names), names["calls"]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_function_that_raises_is_told_its_own_line(exercise):
    outcome = judge(exercise, make_functions(exercise, "return 1 / len([])")[0])
    assert outcome.status == "failed"
    assert "ZeroDivisionError" in outcome.sentence and "your line" in outcome.sentence


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_loop_without_end_is_waited_for_once(monkeypatch, exercise):
    monkeypatch.setattr(learner, "LIMIT_S", 0.3)
    functions, calls = make_functions(exercise, "calls.append(1)\n    while True: pass")
    outcome = judge(exercise, functions)
    assert "has not returned after 0.3 s of computing" in outcome.sentence
    assert len(calls) == 1


# The second decoder of the checks


def make_theirs(**changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES | {"rms_norm_eps": 1e-3, "max_position_embeddings": 64} | changes)
    model = transformers.LlamaForCausalLM(config).eval()
    for name, one in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(one, 0.5, 1.5)
        else:
            torch.nn.init.normal_(one, std=0.3)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ],
)
def test_the_second_decoder_is_transformers_decoder_also_with_a_cache(changes):
    model = make_theirs(**changes)
    ids = torch.randint(37, (2, 11), generator=torch.Generator().manual_seed(1))
    weights = load_weights(model)
    with torch.inference_mode():
        right = model(ids).logits
        first, cache = second.run_decoder(weights, ids[:, :6])
        rest, _ = second.run_decoder(weights, ids[:, 6:], cache)
    assert torch.allclose(torch.cat([first, rest], 1), right, atol=2e-5, rtol=1e-5)


def test_the_second_attention_and_rotation_are_those_of_torch_and_transformers():
    pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, n, 5, 8, generator=draw) for n in (6, 2, 2))
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(second.attend(q, k, v), right, atol=1e-6)
    positions = torch.arange(3, 8)
    angles = positions[:, None] * 100.0 ** (-torch.arange(0, 8, 2) / 8)
    cos, sin = (f(torch.cat([angles, angles], -1))[None] for f in (torch.cos, torch.sin))
    right, _ = apply_rotary_pos_emb(q, k, cos, sin)
    assert torch.allclose(second.turn(q, positions, theta=100.0), right, atol=1e-6)


# 03.1, 03.3


def test_one_function_in_place_of_both_is_told_how_to_give_both():
    rms_norm, rotate = answer("03.1")
    for one in (rms_norm, (rms_norm, 3), (rms_norm,)):
        assert "both functions are asked for" in judge("03.1", one).sentence
    assert judge("03.1", [rms_norm, rotate]).status == "passed"


def test_the_pass_quotes_the_distance_to_transformers():
    outcome = judge("03.3", answer("03.3"))
    assert outcome.measurement["logit_distance"] < 1e-5
    assert f"{outcome.measurement['logit_distance']:.1e}" in outcome.sentence


# 03.4


def test_torchs_flop_counter_agrees_with_the_count_of_a_transformers_step():
    from torch.utils.flop_counter import FlopCounterMode

    model = make_theirs()
    model.set_attn_implementation("eager")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.randint(37, (2, 9)))
    right = second.count_by_torch(SIZES, new_tokens=9, cached_tokens=0, batch=2)[0]
    angles = 2 * SIZES["head_dim"] // 2 * 9  # Transformers 5.17 makes RoPE's angles by a matrix product, 5.19 does not
    assert counter.get_total_flops() - right in (0, angles)


def test_the_steps_by_hand_are_what_the_flop_counter_finds():
    for config, options, numbers in checks._BY_HAND:
        assert second.count_by_torch(config, **options) == numbers


# 03.5


def test_transformers_warpers_have_the_exact_probabilities():
    transformers = pytest.importorskip("transformers")
    logits = torch.tensor([draws.LOGITS])
    for options in draws.SETTINGS:
        z = transformers.TemperatureLogitsWarper(options.get("temperature", 1.0))(None, logits)
        if options.get("top_k"):
            z = transformers.TopKLogitsWarper(options["top_k"])(None, z)
        if options.get("top_p"):
            z = transformers.TopPLogitsWarper(options["top_p"])(None, z)
        right = draws.estimate_probabilities(logits[0].tolist(), **options)
        assert z.softmax(1)[0].tolist() == pytest.approx(right, abs=1e-6), options


# Another form than the reference's; the three steps in every order.
ORDERS = """
def cut_k(z, k):
    if not k:
        return z
    return z.masked_fill(z < z.topk(min(k, z.shape[1])).values[:, -1:], -torch.inf)


def cut_p(z, p):
    probabilities, order = z.softmax(1).sort(dim=1, descending=True)
    cut = probabilities.cumsum(1) - probabilities >= p
    return z.masked_fill(cut.scatter(1, order, cut), -torch.inf)


def sample(logits, *, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    if temperature == 0:
        return logits.argmax(1)
    z = logits
    {steps}
    return torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
"""
STEPS = {"t": "z = z / temperature", "k": "z = cut_k(z, top_k)", "p": "z = cut_p(z, top_p)"}


@pytest.mark.parametrize(
    ("order", "phrase"),
    [
        ("tkp", ""),
        ("ktp", ""),  # top-k looks at ranks, and the temperature does not change those
        ("tpk", "top-p comes before top-k, or"),
        ("kpt", "the temperature comes too late"),
        ("pkt", "the temperature comes too late"),
        ("ptk", "the temperature comes too late"),
    ],
)
def test_every_order_of_the_three_steps_passes_or_is_named(order, phrase):
    outcome = judge("03.5", answer("03.5", ORDERS.format(steps="; ".join(STEPS[step] for step in order))))
    assert outcome.status == ("failed" if phrase else "passed"), outcome
    assert phrase in outcome.sentence


def test_the_p_values_are_scipys_and_an_impossible_token_gives_0():
    stats = pytest.importorskip("scipy.stats")
    a, b, expected = torch.tensor([480, 310, 210]), torch.tensor([500, 330, 170]), torch.tensor([500, 300, 200])
    assert draws.estimate_p_value(a - expected, expected) == pytest.approx(
        stats.chisquare(a, expected).pvalue, rel=1e-6
    )
    right = stats.chi2_contingency([a.tolist(), b.tolist()], correction=False).pvalue
    assert draws.estimate_p_value(a - b, a + b) == pytest.approx(right, rel=1e-6)
    assert draws.estimate_p_value([-20, 19, 1], [500, 500, 0]) == 0.0
    assert draws.estimate_p_value([0, 0], [1000, 0]) == 1.0


def test_every_named_sampler_is_far_from_the_right_one_after_so_many_draws():
    """The limit is one in a million, and luck moves a p-value by less than the rest."""
    for mistake in load_mistakes("03.5"):
        if mistake.kind == "named":
            counts = list(draws.count_draws(answer("03.5", mistake.code)))
            assert min(draws.estimate_fit(counts)) < 1e-60, mistake.sentence


def test_a_right_sampler_is_rarely_refused():
    """The p-values of right draws are spread evenly: far from the limit of one in a million."""
    right = draws.estimate_probabilities(draws.LOGITS, temperature=1.7, top_k=6, top_p=0.75)
    draw, expected = torch.Generator().manual_seed(9), 2000 * torch.tensor(right)
    p_values = []
    for _ in range(200):
        ids = torch.multinomial(torch.tensor(right), 2000, replacement=True, generator=draw)
        p_values.append(draws.estimate_p_value(ids.bincount(minlength=12) - expected, expected))
    assert min(p_values) > 1e-4
    assert 0.4 < sum(p_values) / len(p_values) < 0.6


def test_the_quiz_goes_from_beginner_to_advanced_and_its_bytes_are_right():
    content = json.loads((find_lab_folder("03") / "quiz.json").read_text(encoding="utf-8"))
    assert [one["level"] for one in content["questions"]] == ["beginner"] * 2 + ["intermediate"] * 2 + ["advanced"]
    assert content["questions"][2]["answer"] == 2 * 32 * 8 * 128 * 2
