"""Blocks that are assigned, committed and requeued in any order, without a process: the schedule is the real one."""

from collections import Counter, deque
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from llmembed.backbones import BadText, ignore_batch
from llmembed.extraction.messages import BadTextsFound, BatchEmbedded, ShardCommitted
from llmembed.extraction.schedule import MOST_LOST, MOST_LOST_TO_SUSPECTS, Schedule, Slot

# What a text does to the worker that embeds it. Bad ones are found by the worker, killing ones end it.
GOOD, BAD, KILLING = "good", "bad", "killing"


class Play:
    """Workers that do, in any order, what workers do, and are lost when a text kills them or by so many accidents."""

    def __init__(self, blocks: list[list[str]], slots: list[Slot], seed: int, accidents: int) -> None:
        self.random, self.accidents = Random(seed), accidents
        self.embedded, self.committed, self.told, self.found = Counter(), Counter(), Counter(), set()
        keyed = [{f"{i}.{j}".encode(): text for j, text in enumerate(block)} for i, block in enumerate(blocks)]
        self.texts = {key: text for block in keyed for key, text in block.items()}
        self.schedule = Schedule(keyed, slots, self.count(self.embedded), self.count(self.committed), self.bad)
        # What is to be embedded, and what of each embedded block is to be committed, in every slot.
        self.waiting = {slot: deque() for slot in slots}
        self.unwritten = {slot: deque() for slot in slots}
        self.rows = Counter()

    @staticmethod
    def count(total: Counter):
        return lambda texts, tokens: total.update(texts=texts, tokens=tokens)

    def bad(self, texts: dict[bytes, BadText]) -> None:
        by_worker = {key for key, text in texts.items() if text.reason == BAD}
        self.found |= by_worker
        self.told.update(texts.keys() - by_worker)

    def run(self) -> None:
        while not self.schedule.is_finished and self.schedule.slots:
            slot = self.random.choice(self.schedule.slots)
            slot.ever_ready = True
            if self.accidents and self.random.random() < 0.1:
                self.accidents -= 1
                self.lose(slot)
            elif not slot.in_work:
                self.take(slot, self.schedule.assign(slot))
            else:
                self.random.choice([self.ask, self.embed, self.embed, self.commit, self.commit])(slot)

    def take(self, slot: Slot, block: dict[bytes, str] | None) -> None:
        if block is not None:
            self.waiting[slot].append(block)

    def ask(self, slot: Slot) -> None:
        self.take(slot, self.schedule.assign_ahead(slot))

    def embed(self, slot: Slot) -> None:
        if not self.waiting[slot]:
            return
        block = self.waiting[slot].popleft()
        self.schedule.record(slot, BatchEmbedded(len(block), 2 * len(block)))
        if KILLING in block.values():
            self.lose(slot)
            return
        bad = [key for key, text in block.items() if text == BAD]
        if bad:
            self.schedule.record(slot, BatchEmbedded(-len(bad), -2 * len(bad)))
            self.schedule.record(slot, BadTextsFound({key: BadText(BAD) for key in bad}))
        self.unwritten[slot].append([key for key in block if key not in bad])

    def commit(self, slot: Slot) -> None:
        if self.unwritten[slot]:
            keys = self.unwritten[slot].popleft()
            self.rows.update(keys)
            self.schedule.record(slot, ShardCommitted(len(keys), 2 * len(keys)))

    def lose(self, slot: Slot) -> None:
        self.waiting[slot].clear()
        self.unwritten[slot].clear()
        self.schedule.requeue(slot, "it was lost.")


def of(play: Play, kind: str) -> set[bytes]:
    return {key for key, text in play.texts.items() if text == kind}


BLOCKS = st.lists(st.lists(st.sampled_from([GOOD] * 6 + [BAD, KILLING]), min_size=1, max_size=9), max_size=8)


@settings(max_examples=300, deadline=None)
@given(BLOCKS, st.integers(1, 4), st.integers(0, 2**32), st.integers(0, 12))
def test_in_any_order_every_text_is_committed_or_told_to_be_bad_once(blocks, slots, seed, accidents):
    play = Play(blocks, [Slot(str(number)) for number in range(slots)], seed, accidents)
    play.run()
    once = play.rows + play.told
    assert set(once.values()) <= {1}
    assert not play.found & play.rows.keys()
    # Where every slot was given up, the rest is neither; but it is not forgotten.
    assert play.schedule.is_finished == (once.keys() | play.found >= play.texts.keys())
    assert play.embedded == play.committed
    assert play.committed["texts"] == len(play.rows)


@settings(max_examples=300, deadline=None)
@given(BLOCKS, st.integers(1, 4), st.integers(0, 2**32))
def test_without_accidents_only_texts_that_kill_are_told_to_have_killed(blocks, slots, seed):
    play = Play(blocks, [Slot(str(number)) for number in range(slots)], seed, 0)
    play.run()
    assert play.told.keys() <= of(play, KILLING)
    if play.schedule.is_finished:
        assert play.rows.keys() == of(play, GOOD)
        assert (play.told.keys(), play.found) == (of(play, KILLING), of(play, BAD))


def ready_slots(number: int) -> list[Slot]:
    return [Slot(str(gpu), ever_ready=True) for gpu in range(number)]


def schedule_of(blocks: int, slots: list[Slot]) -> Schedule:
    keyed = [{f"{i}".encode(): f"text {i}"} for i in range(blocks)]
    return Schedule(keyed, slots, ignore_batch, ignore_batch, lambda _: None)


def test_what_lost_a_worker_goes_to_another_slot_and_nothing_with_it():
    one, other = slots = ready_slots(2)
    schedule = schedule_of(3, slots)
    block = schedule.assign(one)
    schedule.requeue(one, "it was lost.")
    fresh = schedule.assign(one)
    assert fresh != block
    schedule.record(one, ShardCommitted(1, 1))
    schedule.assign(one)
    schedule.record(one, ShardCommitted(1, 1))
    assert schedule.assign(one) is None
    assert schedule.assign(other) == block
    assert schedule.assign_ahead(other) is None


def test_a_slot_takes_nothing_ahead_that_another_has_nothing_without():
    one, other = slots = ready_slots(2)
    schedule = schedule_of(3, slots)
    schedule.assign(one)
    assert schedule.assign_ahead(one) is not None
    assert schedule.assign_ahead(one) is None
    assert schedule.assign(other) is not None


def test_a_text_is_blamed_only_when_it_lost_two_workers_alone():
    (slot,) = slots = ready_slots(1)
    told = {}
    blocks = [{b"0": "a"}, {b"1": "b"}, {b"2": "c"}]
    schedule = Schedule(blocks, slots, ignore_batch, ignore_batch, told.update)
    assert [schedule.assign(slot), schedule.assign_ahead(slot), schedule.assign_ahead(slot)] == blocks
    schedule.requeue(slot, "with two others.")
    alone = [schedule.assign(slot)]
    schedule.requeue(slot, "alone.")
    assert not told
    while not told:
        alone.append(schedule.assign(slot))
        schedule.requeue(slot, "alone.")
    assert [block for block in alone if block == {b"0": "a"}] == [{b"0": "a"}] * 2


def test_a_slot_is_given_up_that_loses_worker_after_worker_or_never_had_one():
    slots = [*ready_slots(1), Slot("never ready")]
    schedule = schedule_of(9, slots)
    for _ in range(MOST_LOST):
        assert not slots[0].is_given_up
        lose_one(schedule, slots[0])
    assert schedule.slots == slots[1:]
    schedule.requeue(slots[1], "it was lost.")
    assert not schedule.slots and not schedule.is_finished


def test_a_slot_that_commits_between_lost_workers_is_not_given_up():
    (slot,) = slots = ready_slots(1)
    schedule = schedule_of(9, slots)
    for _ in range(MOST_LOST):
        lose_one(schedule, slot)
        schedule.assign(slot)
        schedule.record(slot, ShardCommitted(1, 1))
    assert schedule.slots == slots


def test_a_slot_that_nothing_comes_out_of_is_given_up_even_if_the_texts_are_suspect():
    (slot,) = slots = ready_slots(1)
    schedule = Schedule([dict.fromkeys(map(bytes, range(99)), "")], slots, ignore_batch, ignore_batch, lambda _: None)
    lost = 0
    while schedule.slots:
        lose_one(schedule, slot)
        lost += 1
    assert lost == 1 + MOST_LOST_TO_SUSPECTS


def lose_one(schedule: Schedule, slot: Slot) -> None:
    schedule.assign(slot)
    schedule.record(slot, BatchEmbedded(1, 1))
    schedule.requeue(slot, "it was lost.")
