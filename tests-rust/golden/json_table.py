"""Writes json_encode.tsv and json_decode.tsv: what CPython's json makes of values and of texts.

Run with CPython 3.11: python json_table.py

json_encode.tsv: msgpack value in hex, json.dumps of it (escaped as \\u{hex}), or `!` and the message.
json_decode.tsv: text in hex, the msgpack value of json.loads in hex, or `!`.
"""

import datetime as dt
import decimal
import json
import math
import random
import struct
import uuid

random.seed(20260102)


def head(length, small, codes):
    if small is not None and length < small[1]:
        return bytes([small[0] | length])
    for code, size, form in codes:
        if length < 1 << 8 * size:
            return bytes([code]) + struct.pack(form, length)
    raise ValueError(length)


def ext(code, body):
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(len(body))
    start = bytes([fixed]) if fixed else head(len(body), None, [(0xC7, 1, ">B"), (0xC8, 2, ">H"), (0xC9, 4, ">I")])
    return start + bytes([code]) + body


def pack(value):
    if value is None:
        return b"\xc0"
    if value is True or value is False:
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return pack_int(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        try:
            body = value.encode()
        except UnicodeEncodeError:
            return ext(10, value.encode("utf-8", "surrogatepass"))
        return head(len(body), (0xA0, 32), [(0xD9, 1, ">B"), (0xDA, 2, ">H"), (0xDB, 4, ">I")]) + body
    if isinstance(value, bytes):
        return head(len(value), None, [(0xC4, 1, ">B"), (0xC5, 2, ">H")]) + value
    if isinstance(value, list):
        items = b"".join(map(pack, value))
        return head(len(value), (0x90, 16), [(0xDC, 2, ">H"), (0xDD, 4, ">I")]) + items
    if isinstance(value, dict):
        entries = b"".join(pack(key) + pack(item) for key, item in value.items())
        return head(len(value), (0x80, 16), [(0xDE, 2, ">H"), (0xDF, 4, ">I")]) + entries
    for kind, code in ((tuple, 2), (set, 3), (frozenset, 4)):
        if isinstance(value, kind):
            return ext(code, pack(list(value)))
    if isinstance(value, dt.datetime):
        micros = (value.replace(tzinfo=None) - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)
        return ext(5, struct.pack(">q", micros))
    if isinstance(value, dt.date):
        return ext(6, struct.pack(">i", (value - dt.date(1970, 1, 1)).days))
    if isinstance(value, dt.timedelta):
        return ext(7, struct.pack(">qii", value.days, value.seconds, value.microseconds))
    if isinstance(value, uuid.UUID):
        return ext(8, value.bytes)
    if isinstance(value, decimal.Decimal):
        return ext(9, str(value).encode())
    raise TypeError(value)


def pack_int(value):
    if 0 <= value < 1 << 64:
        return head(value, (0, 128), [(0xCC, 1, ">B"), (0xCD, 2, ">H"), (0xCE, 4, ">I"), (0xCF, 8, ">Q")])
    if -32 <= value < 0:
        return struct.pack(">b", value)
    for code, form, bits in ((0xD0, ">b", 7), (0xD1, ">h", 15), (0xD2, ">i", 31), (0xD3, ">q", 63)):
        if -(1 << bits) <= value < 0:
            return bytes([code]) + struct.pack(form, value)
    size = 1
    while not -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1:
        size += 1
    return ext(1, value.to_bytes(size, "little", signed=True))


def escape(text):
    return "".join(c if " " <= c < "\x7f" and c != "\\" else f"\\u{{{ord(c):x}}}" for c in text)


def floats():
    yield from (0.0, -0.0, 1.0, -1.5, 1e15, 1e16, 1e17, 123456789012345680.0, 9999999999999998.0, 1e-4, 1e-5, 1e-7)
    yield from (0.1, 0.00012345, 1.5e-5, 5e-324, 1.7976931348623157e308, 2.2250738585072014e-308, 1e22, 1e23, 1e100)
    yield from (math.nan, math.inf, -math.inf, 2.0**53, 2.0**63, 1e21, 4.35, 0.3, 1 / 3, 100.0, 1234.5, 1e-10)
    for _ in range(1000):
        yield struct.unpack(">d", random.randbytes(8))[0]
    for _ in range(400):
        yield random.uniform(-1, 1) * 10.0 ** random.randint(-8, 20)
    for exponent in range(-30, 30):
        yield 10.0**exponent
    for exponent in range(-1074, 1024, 3):
        yield math.ldexp(1.0, exponent)
    for bits in range(40, 60):
        for _ in range(15):
            yield (random.getrandbits(52) | 1 << 52) / 2.0 ** (bits - 40) + 0.125


def ints():
    for bits in (0, 1, 5, 7, 8, 15, 16, 31, 32, 62, 63, 64, 65, 70, 127, 128, 200, 1000, 5000):
        for offset in (-1, 0, 1):
            yield (1 << bits) + offset
            yield -(1 << bits) + offset
    yield 10**4299
    yield -(10**4300) + 1


def strings():
    yield from ("", "a", "ü", "é😀", "\x00\x01\x1f \x7f\x80\u2028", "\"\\/\b\f\n\r\t", "\ud800", "a\udfffb", "\udc00\ud800x")
    yield from ("\ud800\U0001f600\udc00", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "é" * 200)
    for _ in range(150):
        yield "".join(random.choices("ab\"\\é日😀\n\x7f\ud83d\x05", k=random.randint(1, 12))).replace("\ud83d\ude00", "")


def values():
    for source in (floats(), ints(), strings()):
        yield from source
    yield from (None, True, False, [], {}, (), [1, 2.5, None, True], {"a": {"b": []}}, [[], [{}]], list(range(20)))
    yield {5: 1, 1.5: 2, True: 3, None: 4, "s": 5, 2**70: 6, math.nan: 7, math.inf: 8, -0.0: 9, "\ud800": 10, -7: 11, 1e16: 12}
    yield {False: 0}
    yield {1: "a", "1": "b"}
    yield (1, (2, [3, (4,)]), {"t": ()})
    yield {str(i): list(range(i)) for i in range(40)}


def bad_values():
    bad = (b"x", {1}, frozenset({1}), dt.datetime(2026, 1, 2), dt.date(2026, 1, 2), dt.timedelta(1), uuid.UUID(int=5),
           decimal.Decimal("1.5"))
    for value in bad:
        yield value
        yield {"a": [1, {"b c": (0, value)}]}
    for key in (b"x", (1,), frozenset(), dt.date(2026, 1, 2), uuid.UUID(int=5), decimal.Decimal(1)):
        yield {key: 1}
    yield 10**4300


def texts():
    for value in values():
        if value == {1: "a", "1": "b"}:
            continue  # Written twice; read as one key by CPython, and as two entries here.
        yield json.dumps(value).encode()
        if not any(0xD800 <= ord(c) < 0xE000 for c in json.dumps(value, ensure_ascii=False)):
            yield json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    yield from (text.encode() for text in r"""1e400|-1e400|1e-400|-0|-0.0|0e5|1E5|1e+5|01|-|-a|+1|.5|1.|1.e5|1e|1e+|1.5.5|0x1|nan|NaN|-NaN
Infinity|-Infinity|+Infinity|Inf|null|nul|nulll|true|True|"a|"\u12"|"\u12g4"|"\uD83D\uDE00"|"\ud83d\u0041"|"\ude00\ud83d"|"\ud83d\ud83d\ude00"
"\ud83d"|"\ud83dx"|"\x41"|"\'"|"\/"|'a'|[|]|[]]|[1,]|[,1]|[1 2]|[1,,2]|{|}|{}}|{"a"}|{"a":}|{"a":1,}|{,}|{a:1}|{1:1}|{"a" 1}|{"a":1 "b":2}
[[[[[]]]]]|[1 , 2 ]|{ "a" : 1 , "b" : [ ] }|1 2|0.1e1|123456789012345678901234567890.5|0.000000000000000000000000000000000000001
9007199254740993.0|2.2250738585072011e-308|1.7976931348623159e308|4.9e-324|2e-324|"\u00e9\u0000"|"\ud83d\ude0"|"\ud83d\u"|"\
""".replace("\n", "|").split("|"))
    yield from (b"", b" ", b"\n[\t1\r,\n2 ]\n", b"\x0b1", b"1\x00", b"\xa01", b'"\x01"', b'"\n"', b'"\x7f"', b'"\xff"', b"\xef\xbb\xbf1")
    yield from (b'"\xed\xa0\x80"', b'"\xc3"', b"\xe2\x80\x891", b"[" + b"1," * 300 + b"1]", b"1" * 4300, b"1" * 4301)
    yield from (b"-" + b"9" * 4300, b"-" + b"9" * 4301, b"0." + b"1" * 5000, "\u0661".encode(), b'"\\ud83d\\ude00\\ud83d"')


with open("json_encode.tsv", "w", encoding="ascii") as table:
    for value in values():
        print(pack(value).hex(), escape(json.dumps(value)), sep="\t", file=table)
    for value in bad_values():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            print(pack(value).hex(), "!" + escape(str(error).split(" for integer")[0]), sep="\t", file=table)

with open("json_decode.tsv", "w", encoding="ascii") as table:
    for text in dict.fromkeys(texts()):
        try:
            answer = pack(json.loads(text.decode())).hex()
        except (ValueError, UnicodeDecodeError):
            answer = "!"
        print(text.hex(), answer, sep="\t", file=table)
