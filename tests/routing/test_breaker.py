"""When a target is left alone, and when it is tried again."""

from proxy.routing.breaker import FAULTS_IN_A_ROW, LONGEST_OPEN_S, MIN_CALLS, OPEN_S, WINDOW_S, Breaker


def opened(now: float = 0.0) -> Breaker:
    """Return a breaker that has just opened."""
    breaker = Breaker()
    outcomes = [breaker.fail(now) for _ in range(FAULTS_IN_A_ROW)]

    assert outcomes == [False] * (FAULTS_IN_A_ROW - 1) + [True]
    return breaker


def began(breaker: Breaker, now: float) -> bool:
    """Let a call begin and end well."""
    has_opened = breaker.begin(now)
    breaker.end(is_well=True)
    return has_opened


def test_answers_that_begin_and_break_off_are_faults():
    """That each of them began does not end the row."""
    breaker = Breaker()
    outcomes = [(breaker.begin(0), breaker.fail(0, has_begun=True))[1] for _ in range(FAULTS_IN_A_ROW)]

    assert outcomes == [False] * (FAULTS_IN_A_ROW - 1) + [True]


def test_it_opens_after_faults_in_a_row():
    """Until its time is over no call is sent."""
    breaker = opened()

    assert [breaker.allows(now) for now in (0, OPEN_S - 0.01, OPEN_S)] == [False, False, True]


def test_a_call_that_goes_well_ends_a_row():
    """The faults before it do not count."""
    breaker = Breaker()
    for _ in range(MIN_CALLS // 4):
        breaker.fail(0)
        began(breaker, 0)
        began(breaker, 0)

    assert breaker.allows(0)


def test_it_opens_when_half_of_the_calls_are_faults():
    """They need not follow one another."""
    breaker = Breaker()
    outcomes = [began(breaker, 0) if number % 2 else breaker.fail(0) for number in range(MIN_CALLS + 1)]

    assert outcomes.index(True) == MIN_CALLS
    assert not breaker.allows(0)


def test_faults_of_long_ago_do_not_count():
    """Only those of about the last ten seconds do."""
    breaker = Breaker()
    for number in range(MIN_CALLS):
        if number % 2:
            began(breaker, 0)
        elif number:
            breaker.fail(0)
    began(breaker, 2 * WINDOW_S)

    assert not breaker.fail(2 * WINDOW_S)


def test_it_opens_when_half_of_the_answers_begin_too_late():
    """A slow target is no fault of a single call."""
    breaker = Breaker()
    outcomes = [breaker.begin(0, is_slow=True) for _ in range(MIN_CALLS)]

    assert outcomes == [False] * (MIN_CALLS - 1) + [True]


def test_one_call_at_a_time_tries_a_target_that_was_left_alone():
    """The others are sent elsewhere until it has ended."""
    breaker = opened()
    breaker.start(OPEN_S)

    assert not breaker.allows(OPEN_S)
    breaker.end(is_well=False)
    assert breaker.allows(OPEN_S)


def test_it_closes_when_the_try_goes_well():
    """Then everything begins anew: one more fault does not open it."""
    breaker = opened()
    breaker.start(OPEN_S)
    began(breaker, OPEN_S)

    assert not breaker.fail(OPEN_S)
    assert breaker.allows(OPEN_S)


def test_each_try_that_fails_doubles_the_time_up_to_a_limit():
    """A target that is down for long is seldom tried."""
    breaker, now, pauses = opened(), 0.0, []
    assert Breaker().state(now) == "closed"
    for _ in range(6):
        pauses.append(breaker.open_until - now)
        assert (breaker.state(now), breaker.state(breaker.open_until)) == ("open", "half-open")
        now = breaker.open_until
        breaker.start(now)
        assert breaker.fail(now)

    assert pauses == [OPEN_S, 10, 20, 40, LONGEST_OPEN_S, LONGEST_OPEN_S]


def test_calls_that_were_already_sent_do_not_open_it_again():
    """Their faults arrive while it is open; the time does not grow by them."""
    breaker = opened()
    outcomes = [breaker.fail(1) for _ in range(MIN_CALLS)]

    assert not any(outcomes)
    assert breaker.open_until == OPEN_S


def test_a_late_answer_of_before_does_not_close_it():
    """Only a call that was sent after the time may."""
    breaker = opened()
    began(breaker, 1)

    assert not breaker.allows(1)


def test_another_process_can_open_it():
    """For no longer than it could itself."""
    breaker = Breaker()
    breaker.open_for(0, 1_000_000)

    assert not breaker.allows(LONGEST_OPEN_S - 1)
    assert breaker.allows(LONGEST_OPEN_S)
