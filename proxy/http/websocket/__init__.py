"""WebSocket mode: GET /v1/responses with an upgrade, then one message for each call and one for each of its events."""
