"""What is kept of the last requests."""

from proxy.telemetry.recent import MAX_NOTES, CallHistory, MadeAttempt, MadeDecision


def test_what_is_kept_of_a_request_is_bounded():
    """A policy may report each event of a stream, and a call may be sent often."""
    history = CallHistory()
    for number in range(MAX_NOTES + 5):
        history.add_attempt(MadeAttempt("a", number, 1.0, 200, None))
        history.add_decision(MadeDecision("p", "reported", "p.x", None))

    assert (len(history.attempts), len(history.decisions)) == (MAX_NOTES, MAX_NOTES)
    assert history.attempts[-1].began_s == MAX_NOTES - 1


async def test_as_many_are_kept_as_are_asked_for(start_gateway, upstream, http, logged):
    """But for probes; a request that was refused is one."""
    from tests.conftest import tables_for
    from tests.metrics import admin_of

    gateway = await start_gateway(tables_for(upstream, admin={"port": 0, "requests": 2}))
    for path in ("/v1/one", "/v1/two", "/healthz", "/v1/three", "/readyz"):
        async with http.get(gateway + path) as answer:
            await answer.read()
    async with http.get(f"{admin_of(logged)}/admin/v1/requests") as answer:
        found = await answer.json()

    assert [each["path"] for each in found["requests"]] == ["/v1/three", "/v1/two"]
