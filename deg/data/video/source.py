"""A video file by FFmpeg (PyAV): its packets, and the pictures that come of them, each with its packet's number.

FFmpeg conceals damage. It is noticed by what the decoder raises, by the mark on a picture, and by what it logs. With
several threads a decoder leaves out the mark, and a message cannot be traced to a packet, so it has one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import av
import av.logging

from deg.data.video.faults import NoPicturesError
from deg.data.video.packets import Packet

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,asf,flv,ogg,mxf,nut,mpeg,mpegts,dv,"
    "mpegvideo,m4v,h264,hevc,av1,obu,ivf,mjpeg,vc1,vc1test,yuv4mpegpipe,rawvideo,gif"
)
"""Containers that are read. Others are no videos for FFmpeg either, or lists that name other files."""
UNKNOWN = -(1 << 63)
"""Stands for a time that the file does not tell."""

logging.getLogger("libav").addHandler(logging.NullHandler())  # our messages say the same in plain words
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)  # a second message like the first may be about another packet


class Source:
    """An open video file. Packets of its stream are numbered from 0, in the order of the file."""

    def __init__(self, name: str):
        """Open a file by an absolute path. Raises av.FFmpegError if FFmpeg cannot, NoPicturesError if it has none."""
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "fflags": "+genpts"}
        self.container = av.open(f"file:{name}", container_options=options, metadata_errors="replace")
        streams = [stream for stream in self.container.streams.video if not _is_cover(stream)]
        if not streams or streams[0].codec_context is None:
            self.container.close()
            raise NoPicturesError(
                "FFmpeg has no decoder for its pictures" if streams else "it has no pictures, only sound or data"
            )
        self.stream = streams[0]
        self.stream.codec_context.thread_count = 1
        self.stream.codec_context.copy_opaque = True

    def close(self) -> None:
        self.container.close()

    @property
    def codec(self) -> str:
        return self.stream.codec_context.name

    def packets(self) -> Iterator[av.Packet]:
        """Yield the packets from where the file was last sought to. Damage of the container ends this early."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    yield packet
        except av.FFmpegError:
            return

    def seek(self, stamp: int, *, to_any: bool = False) -> None:
        """Go to the last key packet, or any, whose stamp is not greater. Raises av.FFmpegError if FFmpeg cannot."""
        self.stream.codec_context.flush_buffers()
        self.container.seek(stamp, stream=self.stream, backward=True, any_frame=to_any)

    def decode(self, packet: av.Packet | None, number: int) -> tuple[list[av.VideoFrame], bool]:
        """Give the decoder a packet, or None for the end; return the pictures that come, and whether it complained."""
        if packet is not None:
            packet.opaque = number
        with av.logging.Capture(local=False) as said:
            try:
                pictures = self.stream.codec_context.decode(packet)
            except av.FFmpegError:
                return [], True
        return pictures, any(level <= av.logging.ERROR and name == self.codec for level, name, _ in said)


def identity(packet: av.Packet) -> Packet:
    """Return what a table keeps of a packet."""
    stamp = packet.dts if packet.dts is not None else packet.pts
    return Packet(
        UNKNOWN if stamp is None else stamp,
        -1 if packet.pos is None else packet.pos,
        packet.size,
        packet.is_keyframe,
        is_shown(packet),
    )


def is_shown(packet: av.Packet) -> bool:
    """Whether a packet's frame is to be shown: edit lists hide some, and VP8 has some only for predicting others."""
    if packet.is_discard:
        return False
    # RFC 6386, section 9.1: show_frame
    return packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)
