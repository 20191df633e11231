"""Relabelling samples with the model that their labels may have compromised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from purifier.answer import check_length
from purifier.certified.answers import Certified, certified_answer
from purifier.data.sample import Sample, open_image
from purifier.defense.defend import groups
from purifier.errors import InvalidPrompt, PromptTooLong, RowError
from purifier.mdlm.base import Inputs, Mdlm, Message
from purifier.numeric import seconds
from purifier.purification.blocks import Asked, BlockwiseDefence
from purifier.purification.config import PurifyConfig
from purifier.purification.dialogue import answer_prompt, image_prompt
from purifier.purification.row import PurifiedRow
from purifier.purification.seeds import answer_seed
from purifier.purification.work import Work

_WINDOW = 4
"""Batches whose samples are sorted by length together."""


class Purifier:
    """Relabels samples; each as it would be alone.

    Args:
        mdlm: The compromised model.
        config: Settings.
        images: Folder of the samples' image files.
    """

    def __init__(self, mdlm: Mdlm, config: PurifyConfig, images: Path) -> None:
        self.mdlm = mdlm
        self.config = config
        self.images = images

    def purify(
        self, samples: Sequence[Sample], *, check: Callable[[], None] | None = None
    ) -> list[PurifiedRow]:
        """Purifies samples, in batches of similar length.

        Args:
            samples: With a place in a file.
            check: Called between batches and between the passes of the model; what it raises
                ends the work.

        Returns:
            One row for every sample, in their order. A sample without images or answers is
            kept as it is.

        Raises:
            DataError: If a sample has no place in a file.
        """
        check = check or (lambda: None)
        work = [Work(sample, list(sample.answers)) for sample in samples]
        asked = [each for each in work if each.sample.images and each.answers]
        size = self.config.batch_size
        for start in range(0, len(asked), size * _WINDOW):
            window = asked[start : start + size * _WINDOW]
            for each in window:
                self._open(each)
            window.sort(key=lambda each: each.length)
            for batch in self._batches(window):
                check()
                self._purify_batch(batch, check)
            for each in window:
                each.close()
        return [each.row() for each in work]

    def _batches(self, window: Sequence[Work]) -> Iterator[list[Work]]:
        """At most `batch_size` samples, and no more positions than memory is planned for.

        Every sample of a batch may hold keys and values of all its positions.
        """
        size = self.config.batch_size
        for group in groups(window, self.config.generation.gen_length):
            for at in range(0, len(group), size):
                yield group[at : at + size]

    def _open(self, work: Work) -> None:
        """Opens a sample's images and prepares its first question."""
        start = seconds(self.mdlm.device)
        try:
            work.images = [
                open_image(self.images, image, work.sample.source) for image in work.sample.images
            ]
        except RowError as error:
            work.problem = error.reason
        else:
            work.inputs = self._prepare(work, self._question(work, 0))
        work.seconds += seconds(self.mdlm.device) - start

    def _question(self, work: Work, number: int) -> list[Message]:
        return answer_prompt(
            work.sample, work.images, number, work.answers[:number], self.config.prompt
        )

    def _prepare(self, work: Work, messages: Sequence[Message]) -> Inputs | None:
        """The question as the model takes it; None if the sample cannot be asked it."""
        try:
            inputs = self.mdlm.prepare(messages)
            check_length(self.mdlm, inputs, self.config.generation)
        except PromptTooLong:
            work.problem = "prompt_too_long"
        except InvalidPrompt:
            work.problem = "malformed"
        else:
            return inputs
        return None

    def _purify_batch(self, batch: Sequence[Work], check: Callable[[], None]) -> None:
        start = seconds(self.mdlm.device)
        config = self.config
        defence = BlockwiseDefence(
            self.mdlm, config.generation, config.defence, config.rescore_blocks, check
        )
        for each in batch:
            if config.flags:
                each.flagged = False
        rounds = max((len(each.answers) for each in batch), default=0)
        for number in range(rounds if config.turns == "all" else 1):
            self._answer_turn(defence, batch, number)
        if config.policy != "drop_flagged":
            for number, prompt in enumerate(config.further_prompts):
                self._answer_further(defence, batch, number, prompt)
        spent = (seconds(self.mdlm.device) - start) / len(batch)
        for each in batch:
            each.seconds += spent

    def _answer_turn(self, defence: BlockwiseDefence, batch: Sequence[Work], number: int) -> None:
        """Judges and replaces one answer of every sample that has so many."""
        asked = []
        for each in batch:
            if each.wanted and number < len(each.answers):
                if number:
                    each.inputs = self._prepare(each, self._question(each, number))
                if each.inputs is not None:
                    asked.append(each)
        # Answers before this one have made the questions longer.
        for group in groups(asked, self.config.generation.gen_length):
            self._answer_together(defence, group, number)

    def _answer_together(
        self, defence: BlockwiseDefence, asked: Sequence[Work], number: int
    ) -> None:
        if self.config.policy == "certified":
            for each in asked:
                self._certify(defence, each, number)
            return
        questions = self._ask(defence, asked, [number] * len(asked))
        for each, question in zip(asked, questions, strict=True):
            each.saw(question.defended)
        chosen = [*range(len(asked))]
        if self.config.flags:
            chosen = self._flag(defence, asked, questions, number)
        if self.config.policy == "drop_flagged":
            for row in chosen:
                asked[row].dropped = True
            return
        for row in chosen:
            if _suspicious(questions[row]):
                asked[row].dropped = True
        chosen = [row for row in chosen if not asked[row].dropped]
        self._answer(
            defence, [asked[row] for row in chosen], [questions[row] for row in chosen], number
        )

    def _flag(
        self,
        defence: BlockwiseDefence,
        work: Sequence[Work],
        questions: Sequence[Asked],
        number: int,
    ) -> list[int]:
        """The samples that are flagged.

        Their label disagrees with what the masked model sees, the model's detector answers to
        them, or the label has most of a payload that the detector knows.
        """
        end = [self.mdlm.tokens.eot]
        labels = [self.mdlm.encode_text(each.sample.answers[number].strip()) + end for each in work]
        flagged = []
        detector = self.mdlm.detector
        limit = self.config.flag_threshold
        for row, nats in enumerate(defence.disagreements(questions, labels, enough=limit)):
            work[row].nats = max(work[row].nats, nats)
            repeats = detector is not None and detector.repeats(labels[row])
            if nats >= limit or questions[row].detected or repeats:
                work[row].flagged = True
                flagged.append(row)
        return flagged

    def _answer(
        self,
        defence: BlockwiseDefence,
        work: Sequence[Work],
        questions: Sequence[Asked],
        number: int,
    ) -> None:
        """Puts masked answers in the place of labels.

        One that has something of a payload that the detector knows would teach it again.
        """
        states = defence.answer(questions)
        for each, question, state in zip(work, questions, states, strict=True):
            text = self.mdlm.decode(state.token_ids).strip()
            doubted = question.detected or each.nats >= self.config.flag_threshold
            if self._teaches(state.token_ids, doubted=doubted):
                each.dropped = True
            elif text:
                each.answers[number] = text
                each.relabelled = True
                each.truncated |= state.finish_reason == "length"
            else:
                each.problem = "empty_answer"

    def _certify(self, defence: BlockwiseDefence, work: Work, number: int) -> None:
        """Puts a certified answer in the place of a label, or leaves the sample out."""
        found = self._certified(defence, work)
        work.agreements.append(found.agreement)
        if found.answer is None:
            work.dropped = True
        elif found.answer.text:
            work.answers[number] = found.answer.text
            work.relabelled = True
            work.truncated |= found.answer.finish_reason == "length"
        else:
            work.problem = "empty_answer"

    def _certified(self, defence: BlockwiseDefence, work: Work) -> Certified:
        assert work.inputs is not None
        config = self.config
        return certified_answer(
            self.mdlm, work.inputs, config.generation, config.certify, check=defence.check
        )

    def _answer_further(
        self, defence: BlockwiseDefence, batch: Sequence[Work], number: int, prompt: str
    ) -> None:
        """Asks every sample of a batch one further prompt."""
        asked = []
        for each in batch:
            if each.wanted:
                each.inputs = self._prepare(each, image_prompt(each.images, prompt))
                if each.inputs is not None:
                    asked.append(each)
        if self.config.policy == "certified":
            for each in asked:
                found = self._certified(defence, each)
                if found.answer is not None and found.answer.text:
                    each.further.append((prompt, found.answer.text))
            return
        places = [len(each.answers) + number for each in asked]
        questions = self._ask(defence, asked, places)
        sighted = [row for row, question in enumerate(questions) if not _suspicious(question)]
        states = defence.answer([questions[row] for row in sighted])
        for row, state in zip(sighted, states, strict=True):
            text = self.mdlm.decode(state.token_ids).strip()
            taught = self._teaches(state.token_ids, doubted=questions[row].detected)
            if text and not taught:
                asked[row].further.append((prompt, text))

    def _teaches(self, token_ids: Sequence[int], *, doubted: bool) -> bool:
        """Whether a new answer would teach a payload: most of it, or a word where it is doubted.

        One word of it in an honest row is none: there are pictures of boats.
        """
        detector = self.mdlm.detector
        if detector is None:
            return False
        word = doubted and not detector.payload.isdisjoint(token_ids)
        return word or detector.repeats(token_ids)

    def _ask(
        self, defence: BlockwiseDefence, work: Sequence[Work], places: Sequence[int]
    ) -> list[Asked]:
        requests = [each.inputs for each in work if each.inputs is not None]
        seeds = [
            answer_seed(self.config.seed, each.sample, place)
            for each, place in zip(work, places, strict=True)
        ]
        return defence.ask(requests, seeds) if requests else []


def _suspicious(question: Asked) -> bool:
    found = question.defended.detection
    return found is not None and found.suspicious
