"""When commands are kept from a server that does not answer."""

from proxy.stores._breaker import LONGEST_PAUSE_S, PAUSE_S, StoreBreaker


def fail(breaker: StoreBreaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        assert breaker.begin(now)
        breaker.fail(now)


def test_single_faults_do_not_open_it():
    """An answer in between begins the count again."""
    breaker = StoreBreaker(3)
    for _ in range(10):
        fail(breaker, 0, 2)
        assert breaker.begin(0)
        breaker.succeed()

    assert breaker.begin(0)


def test_faults_in_a_row_open_it_for_a_while():
    """Then one command tries; its answer closes it."""
    breaker = StoreBreaker(3)
    fail(breaker, 0, 3)

    assert not breaker.begin(PAUSE_S - 0.01)
    assert [breaker.begin(PAUSE_S) for _ in range(2)] == [True, False]
    breaker.succeed()
    assert [breaker.begin(PAUSE_S) for _ in range(2)] == [True, True]


def test_each_pause_is_longer_up_to_a_limit():
    """A server that is down for long costs less and less."""
    breaker, now, pauses = StoreBreaker(1), 0.0, []
    fail(breaker, now)
    for _ in range(6):
        opened = now
        while not breaker.begin(now):
            now += 0.25
        pauses.append(now - opened)
        breaker.fail(now)

    assert pauses == [0.5, 1, 2, 4, 5, 5]
    assert max(pauses) == LONGEST_PAUSE_S


def test_commands_that_were_sent_before_it_opened_do_not_extend_it():
    """Many wait at the same time."""
    breaker = StoreBreaker(2)
    for _ in range(10):
        assert breaker.begin(0)
    for _ in range(10):
        breaker.fail(0)

    assert breaker.begin(PAUSE_S)


def test_a_try_whose_caller_left_leaves_room_for_another():
    """It found nothing out."""
    breaker = StoreBreaker(1)
    fail(breaker, 0)
    assert breaker.begin(PAUSE_S)
    breaker.give_up()

    assert breaker.begin(PAUSE_S)
