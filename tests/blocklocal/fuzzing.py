"""Wrong configurations, made from the settings themselves: every key with every nasty value."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from blocklocal.config import RunConfig
from blocklocal.setting_models import models_in

NASTY = (
    *("null", "~", "", "true", "false", "yes", "off", "''", '"12"', "text", "auto", "2024-01-01"),
    *("0", "1", "2", "3", "7", "-1", "010", "0x10", "1_000", "1:30", "1.0", "4e0"),
    *("999999999", "1000000", "10000001", "1e12", "18446744073709551616", "9" * 300, "9" * 400),
    *("0.5", "1.5", "-0.5", "1e-12", "1e-300", "1e-999", "1e6", "1e18", "1e308", "1e999", "-0.0"),
    *(".inf", "-.inf", ".nan", "inf", "nan"),
    *("[]", "[1]", "[0.5, 0.5]", "[1, 2, 3]", "[[1]]", "[null]", "[" + "1, " * 1500 + "1]"),
    *("{}", "{a: 1}", "{kind: 3}", "{kind: [1]}", "{1: 2}", "{a: 1, a: 2}", "{<<: {a: 1}}"),
    *("[" * 3000, "{a: " * 300 + "1" + "}" * 300, "[" * 45 + "1" + "]" * 45, "&a [*a]", "*a"),
    *("[&a [x, x, x, x], &b [*a, *a, *a, *a], *b, *b]", "!!python/object:os.system x", "!!int 3"),
    *("a" * 245, "a" * 100_000, '"a\\0b"', '"a\\nb"', '"\\ud800"', "\x07", "\x00", "é" * 200),
    *("/", "..", "~/x", "a/" * 3000, "os:system", "json:dumps", "a.b:c", "s3://u:p@h/b", "[x"),
)
"""Values as they are written behind `key=`."""

_TINY = {
    "mlp": ("network.widths=[8, 8, 8]",),
    "vgg8b": ("network.width=0.01",),
    "resnet": ("network.widths=[4, 4]", "network.depths=1"),
    "vit": ("network.width=6", "network.depth=2"),
    "gpt": ("network.width=8", "network.depth=2", "network.causal=false", "data.kind=reversal"),
    "custom": ("network.factory=no_module:build",),
    "reversal": ("data.rows=200", "data.length=4"),
    "parquet": ("data.train=a", "data.test=b"),
    "arrays": ("data.path=a",),
    "text": ("data.path=a",),
}
"""What makes a kind of network small, and gives a kind what it must have."""


class Site(NamedTuple):
    """A setting, and the words without which it is not there."""

    before: tuple[str, ...]
    key: str
    field: tuple[type[BaseModel], str]


def sites(
    model: type[BaseModel] = RunConfig, prefix: str = "", before: tuple[str, ...] = ()
) -> Iterator[Site]:
    """All settings of all kinds, sections among them."""
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        yield Site(before, key, (model, name))
        inner = models_in(info.annotation)
        for one in inner:
            kinds = one.model_fields["kind"].annotation if "kind" in one.model_fields else None
            words = before
            if len(inner) > 1 and get_origin(kinds) is Literal:
                kind = get_args(kinds)[0]
                words = (*before, f"{key}.kind={kind}", *_TINY.get(kind, ()))
            elif name == "sync":
                words = (*before, "lanes.sync.every=2")
            yield from sites(one, f"{key}.", words)


def systematic() -> Iterator[tuple[str, ...]]:
    """Words of configurations: each key with every second value, the next one with the others."""
    for number, site in enumerate({site.field: site for site in sites()}.values()):
        for value in NASTY[number % 2 :: 2]:
            yield (*site.before, f"{site.key}={value}")


def combined(count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Words of configurations that change several settings at once."""
    chance = random.Random(seed)
    known = list(sites())
    for _ in range(count):
        words: list[str] = []
        for site in chance.sample(known, chance.randint(2, 5)):
            words += [*site.before, f"{site.key}={chance.choice(NASTY)}"]
        yield tuple(words)


def damaged(text: bytes, count: int, seed: int) -> Iterator[bytes]:
    """A file with bytes changed, lost, doubled or put in."""
    chance = random.Random(seed)
    marks = b"\0\t\n :,[]{}&*!|>'\"%@`#-?~<\xff\xc3\xa90123456789.eE"
    for _ in range(count):
        data = bytearray(text)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(5):
                case 0:
                    data[at] = chance.choice(marks)
                case 1:
                    data.insert(at, chance.choice(marks))
                case 2:
                    del data[at : at + chance.randint(1, 30)]
                case 3:
                    data[at:at] = data[at : at + chance.randint(1, 60)]
                case _:
                    del data[max(1, at) :]
            if not data:
                data = bytearray(b" ")
        yield bytes(data)
