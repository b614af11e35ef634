"""Writes fnmatch.tsv: pattern, topic and the answer of CPython's fnmatch.fnmatchcase.

Run: python fnmatch_table.py > fnmatch.tsv
"""

import fnmatch
import random
import warnings

warnings.simplefilter("ignore")
random.seed(20260102)

HAND = """
* ** ? ?* *? *?* a* *a *a* a*b a*b*c a?c [a] [!a] [^a] [a-c] [!a-c] [^a-c] [c-a] [!c-a] [c-ax] [x-] [-x]
[--] [!--] [+--] [a--] [---] [-a-] [!-a] [!-] [-] [] [!] []] [!]] []a] [!]a] []-a] []-!] [!]-a] [!]-+x] [
[a [!a a[ a[b [[] [[a] [[:alpha:]] [a&&b] [a||b] [a~~b] [a&b] [\\] [\\a] [a\\] [\\-a] [\\w] [!\\] \\ \\* \\[a]
[a-b-c] [c-b-a] [a-c-e] [b-a!x] [b-a!-c] [b-a^x] [!b-a] [!b-ac] [!b-a-] [a-z0-9] [z-a0-9] [a-] [a-]] [*] [?]
[!*] [.] . .* [^] [^^] [!^] ^ $ a$ (a) (?!) {a} a+ | a|b [a-c]* *[a-c] *[!a-c]* *[a-c]?[!x]* *a*b*c *ab*ab a**b
[b-a] x[b-a] [b-a]* *[b-a]* é [é] [à-ü] [!é] ?é 日* [日-本] 😀 [😀] [😀-😂] *😀* registry:* *:bots registry:*:bots
a[!-z]b a[!!]b a[!!-#]b [!!-] [-!] [!-!] [a-a] [!a-a] [-&] [--a] [!--a] [%--] [-----] [a-c-] [!a-c-]
""".split()
TOPICS = [
    "", "a", "b", "c", "x", "-", "!", "^", "]", "[", "\\", "&", "|", "~", "*", "?", ".", "$", "w", "z", "+", ",",
    "%", "#", "ab", "abc", "abab", "aab", "aXb", "a\nb", "\n", "a\n", "\na", "a:b", "a:b:c", ":", "a]", "[a",
    "[!a", "[a]", "a[", "a[b", "é", "eé", "日本", "日", "本", "😀", "x😀y", "😁", "😃", "registry:bots", "registry:",
    "registry:x:bots", "a\x00b", "a\u2028b", "a|b", "(a)", "a$", "a-b", "a!b", "a\"b", "0", "5", "A", "Z", "aaaa", "ba",
]


def escape(text):
    return "".join(c if " " < c < "\x7f" and c != "\\" else f"\\u{{{ord(c):x}}}" for c in text)


def pairs():
    for pattern in HAND:
        for topic in TOPICS:
            yield pattern, topic
    for _ in range(6000):
        pattern = "".join(random.choices("ab-!^]*?[\\cé&|~\n", k=random.randint(0, 9)))
        yield pattern, "".join(random.choices("ab-!^][\\cé&\n", k=random.randint(0, 5)))
    for _ in range(12000):
        inner = "".join(random.choices("abcd--!^[\\&~|é😀", k=random.randint(0, 9)))
        pattern = random.choice(["", "a", "*"]) + "[" + inner + "]" + random.choice(["", "b", "*"])
        yield pattern, "".join(random.choices("abcd-!^[\\&]é😀", k=random.randint(0, 3)))
    for _ in range(3000):
        pattern = "".join(random.choices("ab*?", weights=[3, 3, 3, 1], k=random.randint(0, 14)))
        yield pattern, "".join(random.choices("ab", k=random.randint(0, 16)))


# One letter per answer keeps the file small: patterns once, then their topics.
table = {}
for pattern, topic in pairs():
    table.setdefault(pattern, {})[topic] = fnmatch.fnmatchcase(topic, pattern)
for pattern, answers in table.items():
    for wanted in (True, False):
        topics = [escape(topic) for topic, answer in answers.items() if answer is wanted]
        if topics:
            print("p" + escape(pattern), "+" if wanted else "-", *("t" + t for t in topics), sep="\t")
