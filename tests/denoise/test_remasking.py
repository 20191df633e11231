import math

import pytest
import torch

from purifier.denoise.config import Remasking
from purifier.denoise.remasking import choose_tokens, confidence, surest

LOGITS = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]))
CHOSEN = torch.tensor([0, 0])


@pytest.mark.parametrize(
    ("remasking", "expected"),
    [
        ("low_confidence", [0.7, 0.4]),
        ("margin", [0.5, 0.05]),
        (
            "entropy",
            [sum(p * math.log(p) for p in row) for row in ([0.7, 0.2, 0.1], [0.4, 0.35, 0.25])],
        ),
    ],
)
def test_confidence_values(remasking: Remasking, expected: list[float]) -> None:
    actual = confidence(LOGITS, CHOSEN, remasking)
    assert actual.dtype == torch.float64
    assert actual.tolist() == pytest.approx(expected, abs=1e-6)


def test_suppressed_ids_leave_the_entropy_finite() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    assert confidence(logits, torch.tensor([0]), "entropy").item() == pytest.approx(-math.log(2))


def test_gumbel_choice_follows_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    uniform = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    tokens = choose_tokens(LOGITS[:1].expand(n, 3), 1.0, uniform)
    shares = tokens.bincount(minlength=3) / n
    # Five standard deviations of a binomial share.
    assert shares.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=5 * math.sqrt(0.25 / n))


def test_zero_temperature_is_the_argmax() -> None:
    assert choose_tokens(LOGITS, 0.0, None).tolist() == [0, 0]


def test_surest_takes_what_there_is() -> None:
    values = [0.1, 0.9, 0.5]
    assert surest(values, 2) == [1, 2]
    assert surest(values, 10) == [1, 2, 0]
    assert surest(values, 0) == []


def test_of_equal_confidences_the_earlier_position_is_committed_first() -> None:
    assert surest([0.5, 1.0, 1.0, 0.5, 1.0], 4) == [1, 2, 4, 0]


@pytest.mark.parametrize("shift", [0.0, 1500.0])
def test_large_logits_do_not_overflow_the_gumbel_choice(shift: float) -> None:
    """Guidance pushes logits beyond what an exponential in float64 holds."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 10, generator=generator).double()
    uniform = torch.rand(64, 10, generator=generator, dtype=torch.float64)
    expected = (logits.exp() / (-torch.log(uniform)) ** 0.7).argmax(-1)
    assert torch.equal(choose_tokens(logits + shift, 0.7, uniform), expected)


def test_a_draw_of_zero_is_never_chosen() -> None:
    uniform = torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64)
    logits = torch.tensor([[9.0, 0.0, -math.inf]])
    assert choose_tokens(logits, 1.0, uniform).tolist() == [1]


@pytest.mark.parametrize("remasking", ["low_confidence", "margin", "entropy"])
def test_confidence_survives_large_logits(remasking: Remasking) -> None:
    actual = confidence(LOGITS + 1500.0, CHOSEN, remasking)
    assert actual.tolist() == pytest.approx(
        confidence(LOGITS, CHOSEN, remasking).tolist(), abs=1e-3
    )
