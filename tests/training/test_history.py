"""The record of a training, and of two trainings together."""

from pyro_flowsamp import History


def test_two_trainings_are_one_record():
    first = History(loss=[3.0], ess=[0.1], steps=20, skipped=1, seconds=2.0, stopped="flat")
    later = History(loss=[2.0, 1.0], ess=[0.2, 0.3], steps=40, seconds=3.0, final_ess=0.3)
    both = first.followed_by(later)
    assert (both.loss, both.ess) == ([3.0, 2.0, 1.0], [0.1, 0.2, 0.3])
    assert (both.steps, both.skipped, both.seconds) == (60, 1, 5.0)
    assert (both.stopped, both.final_ess) == (later.stopped, 0.3)
    assert (first.loss, later.loss) == ([3.0], [2.0, 1.0])


def test_a_changed_copy():
    record = History(steps=3)
    assert record.updated(stopped="flat").stopped == "flat"
    assert record.stopped == "max_steps"
