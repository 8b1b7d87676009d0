"""The transition table: every state can be reached, and every life can end."""

from __future__ import annotations

import pytest

from wsthread.state import TRANSITIONS, ConnectionState, Event, next_state

ALL = [(state, event) for state in ConnectionState for event in Event]


def test_every_state_is_reached_from_disconnected() -> None:
    reached = {ConnectionState.DISCONNECTED}
    grown = True
    while grown:
        after = reached | {to for (state, _), to in TRANSITIONS.items() if state in reached}
        grown = after != reached
        reached = after
    assert reached == set(ConnectionState)


@pytest.mark.parametrize("state", ConnectionState)
def test_every_life_can_end(state: ConnectionState) -> None:
    if state is ConnectionState.DISCONNECTED:
        assert (state, Event.END) not in TRANSITIONS
    else:
        assert TRANSITIONS[state, Event.END] is ConnectionState.DISCONNECTED


def test_a_life_begins_only_from_disconnected() -> None:
    begins = [state for state, event in TRANSITIONS if event is Event.CONNECT]
    assert begins == [ConnectionState.DISCONNECTED]
    leave = [event for state, event in TRANSITIONS if state is ConnectionState.DISCONNECTED]
    assert leave == [Event.CONNECT]


def test_every_event_happens_somewhere() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_only_an_accepted_upgrade_connects() -> None:
    for (_, event), to in TRANSITIONS.items():
        assert (event is Event.OPENED) == (to is ConnectionState.CONNECTED)


@pytest.mark.parametrize(("state", "event"), ALL)
def test_next_state_follows_the_table(state: ConnectionState, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(KeyError):
            next_state(state, event)
