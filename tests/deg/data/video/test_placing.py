"""Pictures get the right frame numbers, in whatever order and with whatever gaps. Damage spoils what follows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deg.data.video.placing import Counter, DisorderError, Frame, Placer

# one group of pictures as (time, is_key) in the order of packets: I P B B P B B
GROUP = ((0, True), (3, False), (1, False), (2, False), (6, False), (4, False), (5, False))
DELAY = 2
"""Number of packets that the decoder of these tests holds back."""


def stream(groups: int, *, leading: int = 0) -> list[tuple[int, bool]]:
    """Return the packets of closed groups, or of open ones in which `leading` frames are shown before the key frame."""
    packets = []
    for number in range(groups):
        shift = number * len(GROUP) * 10
        for position, (time, is_key) in enumerate(GROUP):
            early = number and 0 < position <= leading
            packets.append((shift + (time * 10 if not early else -5 + position), is_key))
    return packets


def decode(
    packets: Sequence[tuple[int, bool]],
    placer: Placer,
    *,
    first: int = 0,
    lost: Sequence[int] = (),
    corrupt: Sequence[int] = (),
    failing: Sequence[int] = (),
) -> list[Frame]:
    """Play a decoder that gives pictures by time, late, without those of `lost` packets."""
    frames: list[Frame] = []
    inside: list[tuple[int, int]] = []

    def give(keep: int) -> None:
        while len(inside) > keep:
            time, packet = min(inside)
            inside.remove((time, packet))
            if packet not in lost:
                placer.decoded(packet, time, f"picture {packet}", is_whole=packet not in corrupt)
        frames.extend(placer.take())

    for packet in range(first, len(packets)):
        time, is_key = packets[packet]
        placer.sent(packet, time, is_key=is_key)
        if packet in failing:
            placer.failed(packet, time)
        inside.append((time, packet))
        give(DELAY)
    give(0)
    placer.finished()
    frames.extend(placer.take())
    return frames


def by_time(packets: Sequence[tuple[int, bool]]) -> list[int]:
    """Return the packets in the order in which their frames are shown."""
    return sorted(range(len(packets)), key=lambda packet: packets[packet])


def damaged(frames: Sequence[Frame]) -> list[int]:
    return [frame.index for frame in frames if not frame.is_whole]


@given(groups=st.integers(1, 5), leading=st.integers(0, 3))
def test_every_picture_gets_its_place_by_time(groups, leading):
    packets = stream(groups, leading=leading)
    frames = decode(packets, Placer(0, at_beginning=True))
    assert [frame.picture for frame in frames] == [f"picture {packet}" for packet in by_time(packets)]
    assert [frame.index for frame in frames] == list(range(len(packets)))
    assert not damaged(frames)


@given(data=st.data(), leading=st.integers(0, 2))
def test_lost_pictures_keep_their_numbers_and_all_others_theirs(data, leading):
    packets = stream(4, leading=leading)
    lost = data.draw(st.sets(st.integers(0, len(packets) - 1), max_size=9))
    frames = decode(packets, Placer(0, at_beginning=True), lost=sorted(lost))
    expected = [None if packet in lost else f"picture {packet}" for packet in by_time(packets)]
    assert [frame.picture for frame in frames] == expected
    assert {frame.index for frame in frames if frame.picture is None} <= set(damaged(frames))


@given(packet=st.integers(0, 27), how=st.sampled_from(["lost", "corrupt", "failing"]))
def test_damage_spoils_what_was_decoded_after_it_up_to_the_next_key_frame(packet, how):
    packets = stream(4)
    frames = decode(packets, Placer(0, at_beginning=True), **{how: [packet]})
    group = packet // len(GROUP)
    spoilt = {position for position in range(packet, (group + 1) * len(GROUP))}
    assert damaged(frames) == [index for index, packet in enumerate(by_time(packets)) if packet in spoilt]


def test_damage_of_an_open_group_reaches_the_frames_shown_before_the_next_key_frame():
    packets = stream(3, leading=2)
    frames = decode(packets, Placer(0, at_beginning=True), corrupt=[6])
    order = by_time(packets)
    assert {order[index] for index in damaged(frames)} == {6, 8, 9}


def test_damage_of_frames_shown_before_a_key_frame_does_not_reach_those_after_it():
    packets = stream(3, leading=2)
    frames = decode(packets, Placer(0, at_beginning=True), corrupt=[8])
    order = by_time(packets)
    assert {order[index] for index in damaged(frames)} == {8, 9}


def test_a_frame_waits_until_the_one_that_it_is_predicted_from_is_known_to_be_whole():
    placer = Placer(0, at_beginning=True)
    for packet, (time, is_key) in enumerate(GROUP[:4]):
        placer.sent(packet, time, is_key=is_key)
    placer.decoded(0, 0, "I", is_whole=True)
    placer.decoded(2, 1, "B", is_whole=True)  # predicted from packet 1, which is shown later
    assert [frame.index for frame in placer.take()] == [0]
    placer.decoded(3, 2, "B", is_whole=True)
    placer.decoded(1, 3, "P", is_whole=False)
    assert [(frame.index, frame.is_whole) for frame in placer.take()] == [(1, False), (2, False), (3, False)]


def test_frames_that_no_decoder_shows_at_the_beginning_have_no_numbers():
    packets = [(time + 100, is_key) for time, is_key in stream(2, leading=2)[len(GROUP) :]]
    placer = Placer(0, at_beginning=True)
    frames = decode(packets, placer, lost=[1, 2])
    assert placer.hidden == 2
    assert [frame.index for frame in frames] == list(range(len(packets) - 2)) and not damaged(frames)


@given(leading=st.integers(0, 3))
def test_a_run_from_the_middle_gives_the_numbers_of_the_whole(leading):
    packets = stream(4, leading=leading)
    whole = {frame.picture: frame.index for frame in decode(packets, Placer(0, at_beginning=True))}
    key = 2 * len(GROUP)
    lost = range(key + 1, key + 1 + leading)  # a decoder cannot show them without the group before
    part = decode(packets, Placer(key, at_beginning=False), first=key, lost=lost)
    assert {frame.picture: frame.index for frame in part if frame.picture} == {
        picture: index for picture, index in whole.items() if index >= key + leading
    }
    assert all(frame.is_whole for frame in part if frame.picture)
    assert not any(frame.is_settled for frame in part[: len(GROUP)])
    assert all(frame.is_settled for frame in part if frame.index >= 3 * len(GROUP) + leading)


def test_times_that_are_made_up_are_noticed():
    packets = [(packet, is_key) for packet, (_, is_key) in enumerate(stream(1))]  # the order of decoding
    placer = Placer(0, at_beginning=True)
    for packet, (time, is_key) in enumerate(packets):
        placer.sent(packet, time, is_key=is_key)
    placer.decoded(0, 0, "I", is_whole=True)
    placer.decoded(2, 2, "B", is_whole=True)
    with pytest.raises(DisorderError):
        placer.decoded(1, 1, "P", is_whole=True)


def test_what_a_decoder_gives_too_late_after_damage_is_left_out():
    placer = Placer(0, at_beginning=True)
    for packet, (time, is_key) in enumerate(GROUP):
        placer.sent(packet, time, is_key=is_key)
    placer.failed(1, 3)
    placer.decoded(0, 0, "I", is_whole=True)
    placer.decoded(4, 6, "P", is_whole=True)
    placer.decoded(2, 1, "B", is_whole=True)
    placer.finished()
    assert damaged(list(placer.take())) == [1, 2, 3, 4, 5, 6]


def test_frames_without_times_are_counted_and_damage_spoils_them_too():
    placer = Counter()
    for packet, (_, is_key) in enumerate(GROUP * 2):
        placer.sent(packet, 0, is_key=is_key)
        if packet == 4:
            placer.failed(4, 0)
        placer.decoded(packet, 0, packet, is_whole=True)
    frames = list(placer.take())
    assert [frame.picture for frame in frames] == list(range(14)) and damaged(frames) == [4, 5, 6]
