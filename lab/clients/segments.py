"""A TCP client of its own: sends one request in segments that come late, twice and overlapping, and writes the answer.

usage: segments.py SOURCE TARGET PORT PATH FILE
"""
import socket
import sys

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

source, target, port, path, file = sys.argv[1:]
is_v6 = ":" in source
header, kind = (IPv6, socket.AF_INET6) if is_v6 else (IP, socket.AF_INET)
# Taken, so that no other connection of this host has it; the kernel's own resets are kept back by the caller.
reserved = socket.socket(kind, socket.SOCK_STREAM)
reserved.bind((source, 4444))
wire = socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_TCP)
wire.bind((source, 0))
wire.settimeout(10)

FIRST = 0xFFFFFF00
request = f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode()
acked = 0


def send(flags, seq, data=b""):
    segment = TCP(sport=4444, dport=int(port), flags=flags, seq=(FIRST + seq) % 2**32, ack=acked, window=60000)
    packet = header(bytes(header(src=source, dst=target) / segment / Raw(data)))
    wire.sendto(bytes(packet[TCP]), (target, 0))


def receive(wanted):
    while True:
        # The kernel leaves the header of IPv4 in front, and not that of IPv6.
        data = wire.recv(65535)
        segment = TCP(data) if is_v6 else IP(data)[TCP]
        if segment.dport == 4444 and segment.sport == int(port) and wanted(segment):
            return segment


send("S", 0)
answer = receive(lambda segment: segment.flags.S and segment.flags.A)
acked = start = (answer.seq + 1) % 2**32
send("A", 1)


def part(begin, end):
    send("PA", 1 + begin, request[begin:end])


length = len(request)
part(20, 30)  # A hole in front.
part(10, 25)  # Overlaps the one before from the left,
part(28, 40)  # and this one from the right.
part(38, length)  # The end, before the beginning.
part(38, length)  # Twice.
part(0, 12)  # Fills the hole, with bytes that are there already.

body = b""
ended = False
while not ended:
    segment = receive(lambda segment: True)
    data = bytes(segment[Raw].load) if Raw in segment else b""
    offset = (segment.seq - start) % 2**32
    # What comes before its turn comes again.
    if offset <= len(body) <= offset + len(data):
        body += data[len(body) - offset :]
        ended = bool(segment.flags.F)
    acked = (start + len(body) + ended) % 2**32
    send("A", 1 + length)
with open(file, "wb") as out:
    out.write(body)
