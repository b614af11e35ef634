"""Writes isoformat.tsv: text, and what CPython's datetime.fromisoformat makes of it.

Run with CPython 3.11: python isoformat_table.py > isoformat.tsv
The answer is `!` for a ValueError, else microseconds, offset in microseconds (`-` = naive) and the
text of isoformat().
"""

import random
from datetime import datetime, timedelta

random.seed(20260102)
EPOCH = datetime(1970, 1, 1)
MICRO = timedelta(microseconds=1)

DATES = """2026-01-02 20260102 2026-W01 2026-W01-3 2026W01 2026W013 2020-W53 2020-W53-7 2021-W53 2024-02-29 2023-02-29
0001-01-01 9999-12-31 0000-01-01 2026-13-01 2026-00-10 2026-04-31 2026-1-2 2026-W00 2026-W54 2026-W10-0 2026-W10-8
0001-W01 0000-W01 9999-W52-7 9999-W53 2026-010 202601 2026-01 20260102x 2026-0102 202601-02 1969-12-31 1600-02-29
1900-02-29 2026-W01- 2026W01- -026-01-02 +2026-01-2 2015-W53-4 1998-W53 2032W53 0004-W53 ２026-01-02""".split()
TIMES = """10 1020 10:20 10:20:30 102030 10:20:30.5 10:20:30,5 10:20:30.123456 10:20:30.123456789 102030.123 10:2030
1020:30 24:00 24:00:00 23:59:60 23:59:59 1 1:2 10:2 10:20: 10:20:30. 10.5 10:20.5 10:20:30:5 10:20:30.12x 1020.5
00:00:00.000000 10:20:30.1234567x 10:20:30.٣ 99:99 10:60 10:20:30.000001 :10 10: 10:: 102030405""".split() + [""]
ZONES = """ Z z ZZ +00:00 -00:00 +01:00 -05:30 +0530 +05 +5 +05:30:15 +05:30:15.25 +05:30:15,250000 -00:00:00.5
+00:00:00.000001 +23:59 +24:00 -23:59:59.999999 +99 + - +053 +05:3 +05:30: +0530:15 +05:3015 Z+01 +01Z +00:60 -24:00
+05:30:15.1234567 +-5 :Z""".split() + [""]


def escape(text):
    return "".join(c if " " < c < "\x7f" and c != "\\" else f"\\u{{{ord(c):x}}}" for c in text)


def texts():
    for date in DATES:
        yield date
        for time in TIMES:
            yield f"{date}T{time}"
        yield f"{date} 10:20:30+01:00"
        yield f"{date}-10"
        yield f"{date}1020"
    for separator in "T t_-0:é日😀W":
        for time in ("10:20", "1020", "10:20:30Z"):
            for date in ("2026-01-02", "20260102", "2026-W01-3", "2026-W01", "2026W01", "2026W013"):
                yield date + separator + time
    for time in TIMES:
        for zone in ZONES:
            yield f"2026-01-02T{time}{zone}"
    for _ in range(4000):
        text = list(random.choice(DATES) + random.choice("T -W1") + random.choice(TIMES) + random.choice(ZONES))
        for _ in range(random.randint(0, 2)):
            if text:
                text[random.randrange(len(text))] = random.choice("0123456789-:TWZ+.,")
        yield "".join(text)
    for _ in range(300):
        moment = EPOCH + random.randint(-62135596800, 253402300799) * timedelta(seconds=1)
        yield moment.isoformat()


for text in dict.fromkeys(texts()):
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        print(escape(text), "!", sep="\t")
        continue
    offset = moment.utcoffset()
    micros = (moment.replace(tzinfo=None) - EPOCH) // MICRO
    print(escape(text), micros, "-" if offset is None else offset // MICRO, moment.isoformat(), sep="\t")
