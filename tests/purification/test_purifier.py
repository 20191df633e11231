"""Relabelling: policies, dialogues, what cannot be purified, and that company does not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from purifier import GenerationConfig, MaskingConfig, answer
from purifier.answer import Answer
from purifier.certified.answers import Certified, certified_answer
from purifier.certified.config import CertifyConfig
from purifier.data.sample import Sample, open_image
from purifier.defense.defend import groups
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.purification.dialogue import answer_prompt
from purifier.purification.seeds import answer_seed
from purifier.purification.work import Work
from purifier.purify import PRESETS, PurifiedRow, Purifier, PurifyConfig
from tests.purification.conftest import placed, sample

RANDOM = MaskingConfig(level="token", ranker="random", ratio=0.5)
FISHER = MaskingConfig(level="token", ranker="fisher", ratio=0.4, probes=2)
SHORT = GenerationConfig(gen_length=5)
CONFIG = PurifyConfig(masking=RANDOM, generation=SHORT, batch_size=4, seed=11)
CERTIFIED = PurifyConfig(
    policy="certified",
    generation=GenerationConfig(gen_length=1),
    certify=CertifyConfig(window=0.1, masks=2, tries=1),
)
SOME = Answer("A bag.", [1, 2], "stop", 9, 4, 0, None, None, (), {}, 2)


def steady(row: PurifiedRow) -> PurifiedRow:
    """The row without what the clock says."""
    side = {name: value for name, value in row.side.items() if name != "seconds"}
    return replace(row, side=side)


def answered(mdlm: LladaV, images: Path, each: Sample, question: str, config: PurifyConfig) -> str:
    """What the masked model says to a first question, asked on its own."""
    pictures = [open_image(images, name) for name in each.image_files]
    masking = replace(config.masking, seed=answer_seed(config.seed, each, 0))
    return answer(mdlm, pictures, question, generation=config.generation, masking=masking).text


def test_relabel_all_replaces_every_answer(
    mdlm: LladaV, images: Path, samples: list[Sample]
) -> None:
    rows = Purifier(mdlm, CONFIG, images).purify(samples)
    assert [row.record for row in rows] == list(range(len(samples)))
    assert [row.id for row in rows] == [each.id for each in samples]
    for each, row in zip(samples, rows, strict=True):
        assert (row.flagged, row.dropped, row.problem) == (None, False, None)
        if not each.images:
            assert row.answers is None
            continue
        assert row.answers is not None
        assert len(row.answers) == len(each.answers)
        assert row.answers[0] == answered(mdlm, images, each, each.question, CONFIG)
        assert all(new != old for new, old in zip(row.answers, each.answers, strict=True))
        assert row.side["mask_ratio"] == pytest.approx(0.5, abs=0.05)
        assert row.side["truncated"] is True


def test_the_paper_asks_its_prompt_and_replaces_first_answers(
    mdlm: LladaV, images: Path, samples: list[Sample]
) -> None:
    config = replace(PRESETS["paper"], generation=SHORT)
    rows = Purifier(mdlm, config, images).purify(samples)
    for each, row in zip(samples, rows, strict=True):
        if not each.images:
            assert row.answers is None
            continue
        assert row.answers is not None
        assert row.answers[0] == answered(mdlm, images, each, config.prompt or "", config)
        assert row.answers[1:] == each.answers[1:]


def test_later_answers_follow_new_ones(mdlm: LladaV, images: Path) -> None:
    (talk,) = placed(
        [sample("t", [3], "<image>\nWhat is it?", "A coat.", "What colour is it?", "Blue.")]
    )
    (row,) = Purifier(mdlm, CONFIG, images).purify([talk])
    assert row.answers is not None
    told = talk.with_answers((row.answers[0], "Other."))
    only_second = replace(CONFIG, policy="flag_then_relabel", flag_threshold=1e-9)
    (again,) = Purifier(mdlm, only_second, images).purify([told])
    assert again.answers is not None
    assert again.answers[1] == row.answers[1]
    (first,) = Purifier(mdlm, replace(CONFIG, turns="first"), images).purify([talk])
    assert first.answers == (row.answers[0], "Blue.")


@pytest.mark.parametrize("masking", [RANDOM, FISHER], ids=lambda m: m.ranker)
@pytest.mark.parametrize(
    "policy", ["relabel_all", "flag_then_relabel", "drop_flagged", "certified"]
)
def test_company_does_not_matter(
    mdlm: LladaV, images: Path, samples: list[Sample], masking: MaskingConfig, policy: str
) -> None:
    config = replace(
        CONFIG,
        policy=policy,  # type: ignore[arg-type]
        masking=masking,
        flag_threshold=0.0005,
        further_prompts=("Describe it.",),
    )
    together = Purifier(mdlm, config, images).purify(samples)
    alone = Purifier(mdlm, replace(config, batch_size=1), images)
    assert [steady(alone.purify([each])[0]) for each in samples] == [*map(steady, together)]
    backwards = Purifier(mdlm, replace(config, batch_size=3), images).purify(samples[::-1])
    assert [*map(steady, backwards[::-1])] == [*map(steady, together)]


def test_the_jobs_seed_matters(mdlm: LladaV, images: Path, samples: list[Sample]) -> None:
    found = {
        tuple(row.answers for row in Purifier(mdlm, config, images).purify(samples))
        for config in (CONFIG, replace(CONFIG, seed=12), replace(CONFIG, seed=11))
    }
    assert len(found) == 2


def test_samples_of_one_batch_are_masked_differently(mdlm: LladaV, images: Path) -> None:
    texts = ("<image>\nWhat is this?", "A bag.")
    twins = placed([sample(name, [0], *texts) for name in ("a", "b", "c", "d")])
    config = replace(CONFIG, masking=replace(RANDOM, ratio=0.7))
    rows = Purifier(mdlm, config, images).purify(twins)
    assert len({row.side["saliency_mean"] for row in rows}) == 4


def disagreements(
    mdlm: LladaV, images: Path, samples: list[Sample], config: PurifyConfig
) -> dict[int, float]:
    """Nats by record, of the samples that can be judged."""
    judging = replace(config, policy="flag_then_relabel", flag_threshold=1000.0)
    rows = Purifier(mdlm, judging, images).purify(samples)
    assert all(row.answers is None for row in rows)
    judged = [row for row in rows if row.flagged is not None]
    return {row.record: float(row.side["flag_nats"] or 0.0) for row in judged}


def test_flag_then_relabel_keeps_labels_that_agree(
    mdlm: LladaV, images: Path, samples: list[Sample]
) -> None:
    nats = disagreements(mdlm, images, samples, CONFIG)
    assert sorted(nats) == [0, 1, 2, 4, 5]
    second, first = sorted(nats.values())[-2:]
    worst = max(nats, key=lambda record: nats[record])
    config = replace(CONFIG, policy="flag_then_relabel", flag_threshold=(first + second) / 2)
    everything = Purifier(mdlm, CONFIG, images).purify(samples)
    rows = Purifier(mdlm, config, images).purify(samples)
    for row, relabelled in zip(rows, everything, strict=True):
        assert row.dropped is False
        if row.record != worst:
            assert row.answers is None
            assert row.flagged is (False if row.record in nats else None)
        elif len(samples[worst].answers) == 1:
            assert (row.flagged, row.answers) == (True, relabelled.answers)
    assert rows[worst].answers not in (None, samples[worst].answers)


def test_drop_flagged_leaves_such_samples_out(
    mdlm: LladaV, images: Path, samples: list[Sample]
) -> None:
    nats = disagreements(mdlm, images, samples, CONFIG)
    limit = sum(sorted(nats.values())[2:4]) / 2
    config = replace(CONFIG, policy="drop_flagged", flag_threshold=limit)
    rows = Purifier(mdlm, config, images).purify(samples)
    flagged = [record for record, value in nats.items() if value > limit]
    assert len(flagged) == 2
    assert [row.record for row in rows if row.dropped] == sorted(flagged)
    assert all(row.flagged is row.dropped for row in rows if row.record in nats)
    assert all(row.answers is None and row.problem is None for row in rows)


def asked_alone(mdlm: LladaV, images: Path, each: Sample, number: int) -> Certified:
    """What the masks agree on for one question, after the sample's own answers before it."""
    pictures = [open_image(images, name) for name in each.image_files]
    inputs = mdlm.prepare(answer_prompt(each, pictures, number, each.answers[:number]))
    return certified_answer(mdlm, inputs, CERTIFIED.generation, CERTIFIED.certify)


def test_certified_labels_are_what_all_masks_say(
    mdlm: LladaV, images: Path, samples: list[Sample]
) -> None:
    rows = Purifier(mdlm, CERTIFIED, images).purify(samples)
    kept = 0
    for each, row in zip(samples, rows, strict=True):
        assert (row.flagged, row.problem) == (None, None)
        if not each.images:
            assert (row.answers, row.dropped) == (None, False)
            continue
        agreements = []
        now = each
        for number in range(len(each.answers)):
            found = asked_alone(mdlm, images, now, number)
            agreements.append(found.agreement)
            if found.answer is None:
                break
            now = now.with_answers(
                (*now.answers[:number], found.answer.text, *now.answers[number + 1 :])
            )
        else:
            kept += 1
            assert (row.answers, row.dropped) == (now.answers, False)
            assert row.side["agreement"] == pytest.approx(min(agreements), rel=1e-3)
            continue
        assert (row.answers, row.dropped) == (None, True)
        assert row.side["agreement"] == pytest.approx(min(agreements), rel=1e-3)
    assert kept


def test_a_label_that_cannot_be_certified_leaves_its_row_out(
    mdlm: LladaV, images: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where answers before it were accepted, and none of its further prompts is kept."""
    real = certified_answer

    def second_question_fails(mdlm: LladaV, inputs: Inputs, *rest: Any, **named: Any) -> Certified:
        found = real(mdlm, inputs, *rest, **named)
        again = "What colour is it?" in mdlm.decode([i for i in inputs.ids.tolist() if i >= 0])
        return replace(found, answer=None) if again else replace(found, answer=SOME)

    monkeypatch.setattr("purifier.purification.purifier.certified_answer", second_question_fails)
    config = replace(CERTIFIED, further_prompts=("Describe it.",))
    talk, single = Purifier(mdlm, config, images).purify([samples[5], samples[0]])
    assert (talk.answers, talk.dropped, talk.further) == (None, True, ())
    assert (single.answers, single.dropped) == ((SOME.text,), False)
    assert single.further == (("Describe it.", SOME.text),)


def test_an_empty_certified_answer_is_a_problem(
    mdlm: LladaV, images: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Certified(replace(SOME, text=""), 1.0, 9)
    monkeypatch.setattr("purifier.purification.purifier.certified_answer", lambda *_, **__: empty)
    (row,) = Purifier(mdlm, CERTIFIED, images).purify(samples[:1])
    assert (row.answers, row.dropped, row.problem) == (None, True, "empty_answer")


def test_where_nothing_is_masked_nothing_is_flagged(
    mdlm: LladaV, images: Path, samples: list[Sample]
) -> None:
    config = replace(CONFIG, policy="flag_then_relabel", masking=replace(RANDOM, ratio=0.0))
    rows = Purifier(mdlm, config, images).purify(samples)
    assert {row.flagged for row in rows} == {False, None}
    assert all(row.answers is None for row in rows)


def test_labels_are_judged_with_the_whole_ratio_masked(
    mdlm: LladaV, images: Path, samples: list[Sample]
) -> None:
    """The masking threshold asks whether to mask at all; a label answers that better."""
    masking = MaskingConfig(ratio=0.2, threshold=1000.0)
    config = replace(CONFIG, masking=masking)
    (plain,) = Purifier(mdlm, config, images).purify(samples[:1])
    assert plain.side["mask_ratio"] == 0.0
    judging = replace(config, policy="flag_then_relabel")
    rows = [row for row in Purifier(mdlm, judging, images).purify(samples) if row.side]
    for row in rows:
        assert row.side["mask_ratio"] == pytest.approx(0.2, abs=0.05)
    assert any(row.side["flag_nats"] for row in rows)


def test_further_prompts_are_answered(mdlm: LladaV, images: Path, samples: list[Sample]) -> None:
    config = replace(CONFIG, further_prompts=("Describe it.", "Name its colour."))
    rows = Purifier(mdlm, config, images).purify(samples)
    plain = Purifier(mdlm, CONFIG, images).purify(samples)
    assert [row.answers for row in rows] == [row.answers for row in plain]
    for each, row in zip(samples, rows, strict=True):
        prompts = [prompt for prompt, _ in row.further]
        assert prompts == (list(config.further_prompts) if each.images else [])
        assert all(text for _, text in row.further)


def test_what_cannot_be_purified_is_dropped_with_its_reason(mdlm: LladaV, images: Path) -> None:
    (images / "broken.png").write_bytes(b"no picture")
    rows = Purifier(mdlm, CONFIG, images).purify(
        placed(
            [
                sample("fine", [0], "What is this?", "A bag."),
                sample("gone", ["gone.png"], "What is this?", "A bag."),
                sample("broken", ["broken.png"], "What is this?", "A bag."),
                sample("long", [0], "word " * 3000, "A bag."),
                sample("mute", [0], "<image>", "A bag."),
                sample("late", [0], "What?", "A bag.", "word " * 3000, "A bag."),
                sample("silent", [0], "What is this?"),
            ]
        )
    )
    assert [row.problem for row in rows] == [
        *(None, "missing_image", "undecodable_image", "prompt_too_long", "malformed"),
        *("prompt_too_long", None),
    ]
    for row in rows:
        assert row.dropped is (row.problem is not None)
        if row.problem or row.id == "silent":
            assert row.answers is None
            assert row.further == ()


def test_an_empty_answer_is_no_label(
    mdlm: LladaV, images: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdlm, "decode", lambda ids: " ")
    (row,) = Purifier(mdlm, CONFIG, images).purify(samples[:1])
    assert (row.problem, row.dropped, row.answers) == ("empty_answer", True, None)


def test_a_check_ends_the_work(mdlm: LladaV, images: Path, samples: list[Sample]) -> None:
    class Cancelled(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        Purifier(mdlm, CONFIG, images).purify(samples, check=check)
    assert calls == 3


def test_no_samples(mdlm: LladaV, images: Path) -> None:
    assert Purifier(mdlm, CONFIG, images).purify([]) == []


def test_a_batch_of_long_samples_is_small(
    mdlm: LladaV, images: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample of a batch may hold keys and values of all its positions."""
    expected = Purifier(mdlm, CONFIG, images).purify(samples)
    sizes: list[int] = []
    whole = Purifier._purify_batch

    def watched(self: Purifier, batch: list[Work], check: Callable[[], None]) -> None:
        sizes.append(len(batch))
        whole(self, batch, check)

    monkeypatch.setattr(Purifier, "_purify_batch", watched)
    Purifier(mdlm, CONFIG, images).purify(samples)
    assert max(sizes) > 1
    sizes.clear()
    monkeypatch.setattr(groups, "__defaults__", (1,))
    found = Purifier(mdlm, CONFIG, images).purify(samples)
    assert set(sizes) == {1}
    assert [steady(row) for row in found] == [steady(row) for row in expected]
