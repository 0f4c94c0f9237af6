"""What is logged of failures in a row."""

from proxy.outage import Outage


def test_the_first_failure_begins_an_outage_and_a_success_ends_it():
    outage = Outage()
    begun = [outage.begins() for _ in range(3)]
    failures = outage.failures
    ended = outage.end()

    assert (begun, failures, ended) == ([True, False, False], 3, 3)
    assert (outage.failures, outage.begins()) == (0, True)
