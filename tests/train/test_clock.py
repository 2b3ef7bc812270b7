from __future__ import annotations

from charjax.train.clock import Clock


def test_the_clock_continues_over_resumptions(time_is):
    clock = Clock(elapsed_s=500.0)
    assert clock.seconds() == 500
    time_is(7.0)
    assert clock.seconds() == 507
    assert clock.lap() == 7  # without the time before


def test_pauses_are_kept_out_of_laps_but_not_out_of_the_time(time_is):
    clock = Clock(elapsed_s=0.0)
    time_is(2.0)
    with clock.paused():
        time_is(12.0)
    time_is(15.0)
    assert clock.lap() == 5
    assert clock.seconds() == 15
    time_is(16.0)
    assert clock.lap() == 1


def test_a_lap_read_in_a_pause_ends_where_the_pause_started(time_is):
    clock = Clock(elapsed_s=0.0)
    time_is(2.0)
    with clock.paused():
        time_is(5.0)
        assert clock.lap() == 2
        time_is(6.0)
    time_is(7.0)
    assert clock.lap() == 1


def test_a_lap_is_never_zero(time_is):
    clock = Clock(elapsed_s=0.0)
    assert clock.lap() > 0
    assert clock.lap() > 0
