"""Thousands of ways to spoil a bundle, and a reader that must refuse each of them and leave nothing behind.

    python -m tests.bundle.mutations --count 10000 --seed 0

Some are what a stick or a stranger does to a file. The rest say another thing under a right signature of a trusted site,
so that it is the later checks that have to refuse. Prints counts by kind and by error code as JSON.
"""

from __future__ import annotations

import argparse
import base64
import copy
import hashlib
import io
import json
import math
import struct
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyrage

from relay_core.bundle import container, history, weights
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.provenance import KnownRelays
from relay_core.config import parse_run
from relay_core.errors import BundleError
from tests.bundle.kit import World, loose, member, members, packed, rechained, resigned

Parts = dict[str, bytes]
JUNK: list[Any] = [
    None, True, False, -1, 1.5, 10**30, 1e308, "", "x" * 300, "\x1b[2Jgone", "two\nlines", "\u202eright to left", "ff",
    "G" * 64, "A" * 64, "n\u043erth", "\ud800", [], {}, [[]], {"a": {}}, {"a": None}, ["F32", [1]], float("nan"),
    float("inf"),
    9 * 10**4000, json.loads("[" * 400 + "]" * 400),
]  # fmt: skip
"""Values that no field takes; where one does, its kind leaves it out."""


@dataclass
class Case:
    """One file for one site."""

    data: bytes
    site: int = 2
    known: KnownRelays | None = None
    keys: KeyFolder | None = None


@dataclass
class Tally:
    """What came of them."""

    kinds: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "mutations": sum(self.kinds.values()),
            "faults": self.faults,
            "kinds": {kind: dict(sorted(self.by_kind[kind].items())) for kind in sorted(self.by_kind)},
            "codes": dict(self.codes.most_common()),
        }


class Forge:
    """Makes cases; every method named `kind_*` is a kind."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        facts = {
            name: world.export(hop, folder / f"{name}.relay", **options)
            for name, hop, options in (
                ("one", 1, {}), ("again", 1, {}), ("half", 1, {"half": True}), ("sealed", 1, {"recipient": "south"}),
                ("two", 2, {}), ("for_west", 1, {"recipient": "west"}), ("strange", 1, {"keys": world.stranger}),
            )
        }  # fmt: skip
        self.facts = facts
        self.files = {name: (folder / f"{name}.relay").read_bytes() for name in facts}
        self.parts = {name: members(folder / f"{name}.relay") for name in ("one", "again", "half", "two", "strange")}
        self.south = world.south.identity()
        self.parts["sealed"] = self._opened("sealed")
        names = [name for name in sorted(dir(self)) if name.startswith("kind_")]
        self.kinds = {name.removeprefix("kind_"): getattr(self, name) for name in names}

    def _opened(self, name: str) -> Parts:
        plain = io.BytesIO(pyrage.decrypt(self.files[name], [self.south]))
        return {name: b"".join(content) for name, _, content in container.read(plain)}

    def case(self, kind: str, random: Random) -> Case:
        """One of a kind."""
        made = self.kinds[kind](random)
        return made if isinstance(made, Case) else Case(made)

    # --- what happens to bytes ---

    def _file(self, random: Random) -> bytes:
        return self.files[random.choice(["one", "half", "sealed"])]

    def kind_flip_bit(self, random: Random) -> bytes:
        data = bytearray(self._file(random))
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        return bytes(data)

    def kind_flip_early(self, random: Random) -> bytes:
        data = bytearray(self._file(random))
        data[random.randrange(40_000)] ^= 1 << random.randrange(8)
        return bytes(data)

    def kind_overwrite(self, random: Random) -> bytes:
        data = self._file(random)
        at, size = random.randrange(len(data)), random.choice([1, 16, 512, 4096])
        return _differs(data, data[:at] + random.randbytes(len(data[at : at + size])) + data[at + size :])

    def kind_truncate(self, random: Random) -> bytes:
        data = self._file(random)
        return data[: random.choice([0, 1, 511, 512, 513, len(data) - 1, len(data) - 512, random.randrange(len(data))])]

    def kind_extend(self, random: Random) -> bytes:
        more = [b"\0", bytes(512), bytes(10240), random.randbytes(700), self._file(random)]
        return self._file(random) + random.choice(more)

    def kind_delete(self, random: Random) -> bytes:
        data = self._file(random)
        at, size = random.randrange(len(data) - 1024), random.choice([1, 512, 1024])
        return _differs(data, data[:at] + data[at + size :])

    def kind_insert(self, random: Random) -> bytes:
        data = self._file(random)
        at = random.choice([random.randrange(len(data)), 512 * random.randrange(len(data) // 512)])
        return _differs(data, data[:at] + random.choice([bytes(512), random.randbytes(17)]) + data[at:])

    def kind_swap_blocks(self, random: Random) -> bytes:
        data = self._file(random)
        count = len(data) // 512
        i, j = sorted(random.sample(range(count), 2))
        a, b = data[512 * i : 512 * i + 512], data[512 * j : 512 * j + 512]
        return _differs(data, data[: 512 * i] + b + data[512 * i + 512 : 512 * j] + a + data[512 * j + 512 :])

    def kind_splice(self, random: Random) -> bytes:
        names = random.sample(["one", "again", "half", "two", "sealed", "strange"], 2)
        first, second = (self.files[name] for name in names)
        at = 512 * random.randrange(1, min(len(first), len(second)) // 512)
        made = first[:at] + second[at:]
        return made if made not in self.files.values() else made + b"\0"

    def kind_noise(self, random: Random) -> bytes:
        head = random.choice([b"", b"age-encryption.org/v1\n", b"\x1f\x8b\x08", b"PK\x03\x04", self.files["one"][:512]])
        return head + random.randbytes(random.randrange(5000))

    # --- members ---

    def _blocks(self) -> list[bytes]:
        return [member(name, content) for name, content in self.parts["one"].items()]

    def kind_reordered_members(self, random: Random) -> bytes:
        blocks = self._blocks()
        order = list(range(len(blocks)))
        while order == sorted(order):
            random.shuffle(order)
        return b"".join(blocks[i] for i in order) + bytes(1024)

    def kind_missing_member(self, random: Random) -> bytes:
        blocks = self._blocks()
        del blocks[random.randrange(len(blocks))]
        return b"".join(blocks) + bytes(1024)

    def kind_duplicated_member(self, random: Random) -> bytes:
        blocks = self._blocks()
        i = random.randrange(len(blocks))
        blocks.insert(random.choice([i, len(blocks)]), blocks[i])
        return b"".join(blocks) + bytes(1024)

    def kind_extra_member(self, random: Random) -> bytes:
        blocks = self._blocks()
        name = random.choice(["evil.py", "x", "relay_core/__init__.py", "weights.safetensors.bak"])
        extra = member(name, random.randbytes(9))
        blocks.insert(random.randrange(len(blocks) + 1), extra)
        return b"".join(blocks) + bytes(1024)

    def kind_renamed_member(self, random: Random) -> bytes:
        target = random.choice(list(self.parts["one"]))
        name = random.choice([
            "/etc/cron.d/evil", f"/{target}", f"../{target}", f"./{target}", f"a/../{target}", f"..\\{target}",
            target.upper(),
            f"{target} ", f"{target}/", target.replace("e", "\u0435"), "..", "/", "C:\\evil",
            "a" * 99, f"{target}\n", "~/.ssh/key",
        ])  # fmt: skip
        return _with_header(self.parts["one"], target, name=name)

    def kind_link_or_device(self, random: Random) -> bytes:
        kind = random.choice([
            tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE,
            tarfile.CONTTYPE, tarfile.AREGTYPE, tarfile.GNUTYPE_SPARSE,
        ])  # fmt: skip
        link = random.choice(["", "/etc/passwd", "../../out/kept.txt", "signature.json"])
        target = random.choice(list(self.parts["one"]))
        return _with_header(self.parts["one"], target, type=kind, linkname=link)

    def kind_other_header(self, random: Random) -> bytes:
        change: dict[str, Any] = random.choice([
            {"mode": 0o4777}, {"uid": 0o7777}, {"gid": 1}, {"mtime": 1}, {"uname": "root"}, {"gname": "wheel"},
            {"devmajor": 1},
        ])  # fmt: skip
        return _with_header(self.parts["one"], random.choice(list(self.parts["one"])), **change)

    def kind_other_format(self, random: Random) -> bytes:
        """What tar programs write: PAX and GNU headers, long names, compression."""
        out = io.BytesIO()
        mode = random.choice(["w", "w:gz", "w:bz2", "w:xz"])
        form = random.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
        long = random.random() < 0.5
        with tarfile.open(fileobj=out, mode=mode, format=form, pax_headers={"comment": "x"}) as archive:
            for name, content in self.parts["one"].items():
                info = tarfile.TarInfo(name if not long else "d" * 120 + "/" + name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return out.getvalue()

    def kind_claimed_size(self, random: Random) -> bytes:
        """Sizes that are huge, negative, in base 256, or wrong by a little."""
        target = random.choice(list(self.parts["one"]))
        true = len(self.parts["one"][target])
        field = random.choice([
            b"77777777777\0", b"37777777777\0", b"00000000000\0", b"-0000000001\0", b"\x80" + bytes(10) + b"\xff",
            b"\xff" * 12,
            b"%011o\0" % (true + random.choice([-1, 1, 512])), b"%011o " % true, b" " * 12, b"%10o \0" % true,
            b"%011o\0" % ((8 << 30) - 1), b"%011o\0" % ((1 << 20) + 1), b"\xd9\xa1" * 6, "\u0661".encode() * 6,
        ])  # fmt: skip
        return _with_header(self.parts["one"], target, size_field=field)

    def kind_dirty_padding(self, random: Random) -> bytes:
        out, name_of = b"", random.choice([n for n, c in self.parts["one"].items() if len(c) % 512])
        for name, content in self.parts["one"].items():
            block = bytearray(member(name, content))
            if name == name_of:
                block[-1 - random.randrange(-len(content) % 512)] = random.randrange(1, 256)
            out += bytes(block)
        return out + bytes(1024)

    def kind_members_of_two(self, random: Random) -> bytes:
        """Some members of one valid bundle, the rest of another."""
        first, second = random.sample(["one", "again", "half", "two", "strange"], 2)
        a, b = self.parts[first], self.parts[second]
        made = {name: random.choice([a, b])[name] for name in a}
        if made in (a, b):
            made["manifest.json"], made["history.json"] = a["manifest.json"], b["history.json"]
        return packed(made)

    # --- who, for whom, when ---

    def _spent(self, name: str) -> dict[str, Any]:
        facts = self.facts[name]
        return {"digest": facts.digest, "run": facts.run, "hop": facts.hop, "created_at": facts.created_at}

    def kind_replay(self, random: Random) -> Case:
        name = random.choice(["one", "half", "sealed"])
        return Case(self.files[name], known=self.world.known(2, self._spent(name)))

    def kind_resealed_replay(self, random: Random) -> Case:
        """The same contents in another ciphertext."""
        made = pyrage.encrypt(packed(self.parts["sealed"]), [pyrage.x25519.Recipient.from_str(self.world.south.card.age)])
        return Case(made, known=self.world.known(2, self._spent("sealed")))

    def kind_older(self, random: Random) -> Case:
        later = {**self._spent("one"), "digest": "0" * 64, "hop": random.choice([1, 2, 3])}
        later["created_at"] += random.uniform(1, 1e6)
        return Case(self.files[random.choice(["one", "half", "sealed"])], known=self.world.known(2, later))

    def kind_wrong_turn(self, random: Random) -> Case:
        name, site = random.choice([("one", 1), ("one", 3), ("two", 2), ("two", 1), ("half", 3)])
        return Case(self.files[name], site=site)

    def kind_run_not_known(self, random: Random) -> Case:
        return Case(self.files[random.choice(["one", "sealed"])], known=KnownRelays({}, []))

    def kind_downgrade(self, random: Random) -> bytes:
        value = random.choice([0, 2, -1, True, 1.0, "1", None, [1], 1 << 70])
        return self._say(manifest=lambda made: {**made, "format": value})

    def kind_newer(self, random: Random) -> bytes:
        value = random.choice(["1", "1.0.0", "2.3", "999999.0", "9" * 6, "9" * 5000, "\u0661.0", "1e9", "v0.1.0", ""])
        return self._say(manifest=lambda made: {**made, "relay": value})

    def kind_wrong_recipient(self, random: Random) -> bytes | Case:
        west, south = self.world.west.card.age, self.world.south.card.age
        plain = packed(self.parts["one"])
        sealed = packed(self.parts["sealed"])
        return random.choice([
            lambda: self.files["for_west"],
            lambda: _age(sealed, west),  # re-encrypted by who got it, for somebody else, who is not deceived
            lambda: Case(_age(sealed, west), keys=self.world.west),
            lambda: _age(plain, south),
            lambda: sealed,
            lambda: pyrage.passphrase.encrypt(sealed[:4096],
            "guess") if random.random() < 0.02 else _age(sealed[:-1], south),
            lambda: _age(packed(self._change(recipient=self.world.west.card.fingerprint)), south),
            lambda: packed(self._change(recipient=self.world.south.card.fingerprint)),
            lambda: _age(packed(self._change(recipient=random.choice([1, "", "south", [], {}, True]))), south),
        ])()  # fmt: skip

    def kind_stranger(self, random: Random) -> bytes:
        """A key that nobody trusts here: on a whole bundle, and behind the name of one that is trusted."""
        parts = self.parts["strange"] if random.random() < 0.3 else resigned(self.parts["one"], self.world.stranger)
        if random.random() < 0.5:
            signature = json.loads(parts["signature.json"])
            signature["verificationMaterial"]["publicKey"]["hint"] = self.world.north.card.fingerprint
            parts = {**parts, "signature.json": loose(signature)}
        return packed(parts)

    def kind_other_trusted(self, random: Random) -> bytes:
        """A trusted site speaks for another trusted one."""
        south = self.world.south
        return random.choice([
            lambda: packed(resigned(self.parts["one"], south)),
            lambda: packed(_statement_by(self.parts["one"], south)),
            lambda: packed(_hint(self.parts["one"], south.card.fingerprint)),
            lambda: self._say(manifest=lambda made: {**made, "signer": _signer(south)}),
            lambda: packed(resigned(self.parts["two"], south, chain=lambda records: rechained(
                [{**r, "signer": {**_signer(south), "public_key": south.card.public_key}} for r in records[:1]] * 2,
                [south, south]))),
        ])()  # fmt: skip

    def kind_revoked(self, random: Random) -> Case:
        """The last hop's key is revoked; or, of a second hop, the first one's."""
        name, site = random.choice([("one", 2), ("half", 2), ("two", 3)])
        keys = copy.copy(self.world.south if site == 2 else self.world.west)
        keys.__class__ = _Disillusioned
        return Case(self.files[name], site=site, keys=keys)

    def kind_signature(self, random: Random) -> bytes:
        """signature.json itself: any value of it replaced by another."""
        found = json.loads(self.parts["one"]["signature.json"])
        junk = random.choice([*JUNK[:-2], "AAAA", "====", "\u00e9", base64.b64encode(b"{}").decode()])
        places = [
            ("mediaType",), ("verificationMaterial",), ("verificationMaterial", "publicKey"),
            ("verificationMaterial", "publicKey", "hint"), ("dsseEnvelope",), ("dsseEnvelope", "payload"),
            ("dsseEnvelope", "payloadType"), ("dsseEnvelope", "signatures"), ("dsseEnvelope", "signatures", 0),
            ("dsseEnvelope", "signatures", 0, "sig"),
        ]  # fmt: skip
        place = random.choice(places)
        spot = found
        for key in place[:-1]:
            spot = spot[key]
        spot[place[-1]] = junk
        return packed({**self.parts["one"], "signature.json": json.dumps(found).encode()})

    def kind_signature_bytes(self, random: Random) -> bytes:
        deep = [b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000]
        made = random.choice([b"", b"null", b"[]", b"{", b"\xff\xfe", b'"\\ud800"', *deep])
        return packed({**self.parts["one"], "signature.json": made})

    def kind_statement(self, random: Random) -> bytes:
        """A statement that a trusted key signed, but not one over these files."""
        change = random.choice([
            lambda d: {**d, "extra.py": "0" * 64}, lambda d: {n: d[n] for n in list(d)[1:]},
            lambda d: {**d, random.choice(list(d)): "0" * 64}, lambda d: {**d, "../run.yaml": d["run.yaml"]},
            lambda d: {},
            lambda d: {**d, "run.yaml": d["run.yaml"].upper()}, lambda d: {**d, "signature.json": "0" * 64},
            lambda d: {n if n != "run.yaml" else "/run.yaml": v for n, v in d.items()},
        ])  # fmt: skip
        return self._say(listed=change)

    # --- what a trusted key could sign ---

    def _change(self, **how: Any) -> Parts:
        return resigned(self.parts["one"], self.world.north, **how)

    def _say(self, **how: Any) -> bytes:
        return packed(self._change(**how))

    def _junk(self, random: Random, *but: Any) -> Any:
        fine = [loose(value) for value in but]
        return random.choice([value for value in JUNK if _loose(value) not in fine])

    def kind_manifest_field(self, random: Random) -> bytes:
        fine: dict[str, tuple[Any, ...]] = {
            "created_at": (1.5,), "half": (True, False), "parent": (None,), "recipient": (None,),
            "metrics": ({}, {"a": {}}),
            "tools": ({},),
        }  # fmt: skip
        key = random.choice(sorted(json.loads(self.parts["one"]["manifest.json"])))
        value = self._junk(random, *fine.get(key, ()))
        return self._say(manifest=lambda made: {**made, key: value}, consistent=random.random() < 0.7)

    def kind_manifest_shape(self, random: Random) -> bytes:
        """Fields too few or too many, no object at all, not canonical."""
        data = self.parts["one"]["manifest.json"]
        made = json.loads(data)
        key = random.choice(sorted(made))
        return random.choice([
            lambda: self._say(manifest=lambda made: {k: v for k, v in made.items() if k != key}, consistent=False),
            lambda: self._say(manifest=lambda made: {**made, random.choice(["extra", "Run", "r\u0443n", ""]): 1}),
            lambda: self._say(manifest_bytes=loose(self._junk(random))),
            lambda: self._say(manifest_bytes=json.dumps(made).encode()),
            lambda: self._say(manifest_bytes=data[:-1] + b',"half":true}'),
            lambda: self._say(manifest_bytes=data.replace(b'"format":1', b'"format":1,"format":1')),
            lambda: self._say(manifest_bytes=data + b"\n"),
            lambda: self._say(manifest_bytes=b"\xef\xbb\xbf" + data),
            lambda: self._say(manifest_bytes=b"[" * 200_000),
            lambda: self._say(manifest_bytes=data.replace(b'"tools":{',
            b'"tools":{"a":' + b"[" * 999 + b"]" * 999 + b",")),
        ])()  # fmt: skip

    def kind_checkpoint(self, random: Random) -> bytes:
        """Steps, images, strategy: what becomes the checkpoint's JSON and its file name."""
        key = random.choice(["strategy", "step", "steps", "images", "consumed", "state", "more", "lacking"])
        junk = self._junk(random)

        def change(made: Any) -> None:
            told = made["checkpoint"]
            if key == "lacking":
                del told[random.choice(sorted(told))]
            elif key == "strategy":
                told[key] = random.choice(["baseline", "Relay", junk])
                told["state"] = {} if random.random() < 0.5 else told["state"]
            elif key == "step":
                told[key] = random.choice([junk, 5, 10**8, 10**300])
            else:
                told[key] = junk

        return self._say(manifest=change)

    def kind_state(self, random: Random) -> bytes:
        """The site bank and the augmentation state."""
        junk = self._junk(random)
        path = random.choice([
            ("previous",), ("current",), ("current", "Domain1"), ("current", "Domain1", "id"), ("current", "Domain1",
            "frequency"),
            ("stage",), ("frozen",), ("label",), ("img",), ("label", "ada"), ("img", "ada", "p"), ("img", "ada",
            "count"),
            ("label", "path_mean"), ("label", "ada", "sign_sum"), ("label", "more"), ("img", "ada", "more"),
            ("current", "Elsewhere"),
        ])  # fmt: skip
        if path == ("previous",) and junk == {}:
            junk = None  # a first site has none before it
        if path[-1] in ("path_mean", "sign_sum") and junk in (-1, 1.5):
            junk = "1"
        if path == ("current",) and junk == {}:
            junk = {"Domain2": {"id": 0, "frequency": 8}}
        if path == ("current", "Domain1", "id"):
            junk = random.choice([junk, 4, 4096, -1, 1 << 40])  # the toy's networks have four slots
        if path == ("current", "Elsewhere"):
            junk = {"id": 1, "frequency": 8}

        def change(made: Any) -> None:
            spot = made["checkpoint"]["state"]
            for key in path[:-1]:
                spot = spot[key]
            spot[path[-1]] = junk

        return self._say(manifest=change)

    def kind_metrics(self, random: Random) -> bytes:
        junk = self._junk(random, None, -1, 1.5)
        metrics = random.choice([
            lambda: {"Domain1": {"dice": junk}}, lambda: {"Domain1": {"hd95_unit": random.choice(["cm", junk])}},
            lambda: {"Domain1": junk if junk != {} else 1}, lambda: {"two\nlines": {}},
            lambda: {"Domain1": {"P. Miller 1961": 0.5}},
            lambda: {"": {}}, lambda: {"Domain1": {"samples": [{"subject": "p001"}]}}, lambda: {"x" * 300: {}},
            lambda: {"Domain1": {"dice": 1 << 60}},
        ])()  # fmt: skip
        return self._say(manifest=lambda made: {**made, "metrics": metrics})

    def kind_tensor_table(self, random: Random) -> bytes:
        """The manifest's tensors: impossible sizes, types, names."""

        def change(made: Any) -> None:
            table = made["tensors"]
            name = random.choice(sorted(table))
            dtype, shape = table[name]
            table[name] = random.choice([
                [dtype, [1 << 40]], [dtype, [-1]], [dtype, [1 << 30] * 8], [dtype, [(1 << 31) - 1] * 8],
                [dtype, [*shape, 1]],
                [dtype, [True]], [dtype, ""], [dtype, {}], [dtype, [1.0]], [dtype, [0]], [dtype], [dtype, shape, 0],
                dtype, None,
                ["F64", shape], ["BF16", shape], ["F16", shape], ["I64" if dtype != "I64" else "F32", shape],
                [None, shape],
                [dtype, [1] * 9], [dtype, [10**30]], ["__class__", shape], [[], shape],
            ])  # fmt: skip

        return self._say(manifest=change)

    def kind_tensor_names(self, random: Random) -> bytes:
        def change(made: Any) -> None:
            table = made["tensors"]
            old = random.choice(sorted(table))
            new = random.choice([
                old.replace("network/", "optimizer/"), "rng/cpu", old.replace("network/", "network/old_"),
                old + "/x", f"{old}.x",
                "network/../../x", old.replace("e", "\u0435"), f"{old}\n", "__metadata__", old.upper(), "",
                "network/solver/" + "x" * 300,
            ])  # fmt: skip
            table[new] = table.pop(old)

        return self._say(manifest=change)

    def kind_tensors(self, random: Random) -> bytes:
        """Weights that fit their manifest, but not the run's networks: missing, too many, of other shapes or types."""
        made = json.loads(self.parts["one"]["manifest.json"])
        tensors = _tensors(self.parts["one"])
        name = random.choice(sorted(tensors))
        dtype, array = tensors[name]
        what = random.choice(["missing", "extra", "shape", "type", "empty", "renamed", "network"])
        if what == "missing":
            del tensors[name]
        elif what == "extra":
            tensors[f"network/{random.choice(['solver', 'old_solver', 'evil'])}/extra"] = ("F32", np.ones(3, "<f4"))
        elif what == "shape":
            tensors[name] = (dtype, array.reshape([1, *array.shape]))
        elif what == "type":
            tensors[name] = ("I64", array.astype("<i8")) if dtype == "F32" else ("F32", array.astype("<f4"))
        elif what == "empty":
            tensors = {}
        elif what == "renamed":
            tensors[f"{name}_"] = tensors.pop(name)
        else:
            network = name.split("/")[1]
            tensors = {key: value for key, value in tensors.items() if key.split("/")[1] != network}
        return self._carry(made, tensors)

    def kind_not_finite(self, random: Random) -> bytes:
        source = random.choice(["one", "half"])
        made, tensors = json.loads(self.parts[source]["manifest.json"]), _tensors(self.parts[source])
        name = random.choice([key for key, (dtype, array) in tensors.items() if dtype != "I64" and array.size])
        dtype, array = tensors[name]
        array = array.copy()
        array.reshape(-1)[random.randrange(array.size)] = random.choice([math.nan, math.inf, -math.inf])
        tensors[name] = (dtype, array)
        return self._carry(made, tensors)

    def _carry(self, made: Any, tensors: dict[str, tuple[str, np.ndarray]]) -> bytes:
        table: weights.Table = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
        data = weights.header(table) + b"".join(tensors[name][1].tobytes() for name in weights.ordered(table))
        made["tensors"] = {name: [dtype, list(shape)] for name, (dtype, shape) in table.items()}
        return self._say(manifest=lambda _: made, weights=data)

    def kind_weights_file(self, random: Random) -> bytes:
        """A safetensors file that another program could read otherwise than its manifest says."""
        data = self.parts["one"]["weights.safetensors"]
        (size,) = struct.unpack("<Q", data[:8])
        head, body = data[8 : 8 + size], data[8 + size :]
        entries = json.loads(head)
        a, b = random.sample(sorted(entries), 2)
        return self._say(weights=random.choice([
            lambda: struct.pack("<Q", 1 << 62) + data[8:], lambda: struct.pack("<Q", size + 8) + head + b" " * 8 + body,
            lambda: data + b"\0", lambda: data[:-1], lambda: b"", lambda: data[: 8 + size], lambda: data[:8],
            lambda: _safetensors({**entries, "__metadata__": {"a": "b"}}, body),
            lambda: _safetensors({**entries, a: entries[b], b: entries[a]}, body),
            lambda: _safetensors({**entries, a: {**entries[a], "data_offsets": [0, 1 << 62]}}, body),
            lambda: _safetensors(dict(reversed(entries.items())), body),
            lambda: struct.pack("<Q", size) + head.replace(b'"F32"', b'"I32"', 1) + body,
            lambda: random.randbytes(len(data)), lambda: bytes(len(data)), lambda: b"\x80\x04\x95" + data[3:],
        ])())  # fmt: skip

    def kind_last_hop(self, random: Random) -> bytes:
        """The last record says another thing than the manifest, or is not sound."""
        key = random.choice(sorted(history._FIELDS - {"signature"}))
        fine = {"previous": (None,), "parent": (None,)}.get(key, ())
        value = self._junk(random, *fine)
        return self._say(record=lambda record: {**record, key: value})

    def kind_chain(self, random: Random) -> bytes | Case:
        """The history of a second hop: gaps, changes, other signers, loops; for the third site."""
        north, south = self.world.north, self.world.south
        first, second = json.loads(self.parts["two"]["history.json"])
        junk = self._junk(random)
        chain = random.choice([
            lambda _: [second], lambda _: [second, first], lambda _: [first, first, second], lambda _: [],
            lambda _: junk,
            lambda _: [junk, second], lambda _: [first, junk], lambda _: [first] * 1001,
            lambda _: [{**first, "images": first["images"] + 1}, second],
            lambda _: rechained([{**first, "images": first["images"] + 1}, second], [south, south]),
            lambda _: rechained([{**first, "site": "Domain3"}, second], [north, south]),
            lambda _: rechained([{**first, "task_id": 3, "site": "Domain3"}, second], [north, south]),
            lambda _: rechained([{**first, "run": "0" * 64}, second], [north, south]),
            lambda _: rechained([{**first, "parent": "0" * 64}, second], [north, south]),
            lambda _: rechained([first, {**second, "parent": None}], [north, south]),
            lambda _: rechained([first, {**second, "hop": 3}], [north, south]),
            lambda _: rechained([{**second, "hop": 1, "parent": None}], [south]),
            lambda _: [first, {**second, "previous": "0" * 64}],
            lambda _: [{**first, "signature": base64.b64encode(random.randbytes(70)).decode()}, second],
            lambda _: [first, {**second, "signature": junk}],
            lambda _: rechained([{**first, "metrics": {"Domain1": {"dice": 1 << 60}}}, second], [north, south]),
            lambda _: rechained([{**first, "created_at": 1e300}, second], [north, south]),
            lambda _: rechained([{**first, "signer": {**first["signer"], "name": "\x1b[2J"}}, second], [north, south]),
            lambda _: rechained([{**first, "signer": {**first["signer"], "public_key": _rsa_pem()}}, second],
            [north, south]),
            lambda _: rechained([{**first, "signer": _full_signer(self.world.stranger)}, second],
            [self.world.stranger, south]),
        ])  # fmt: skip
        made = packed(resigned(self.parts["two"], south, chain=chain))
        return Case(made, site=3)

    def kind_hidden_hop(self, random: Random) -> Case:
        """The second site leaves the first out of the history, and the manifest agrees."""

        def alone(made: Any) -> None:
            made["hop"], made["parent"] = 1, None

        south = self.world.south
        made = resigned(self.parts["two"], south, manifest=alone,
                        chain=lambda records: rechained([{**records[-1], "hop": 1, "parent": None}], [south]))  # fmt: skip
        return Case(packed(made), site=3)

    def kind_history_bytes(self, random: Random) -> bytes:
        data = self.parts["one"]["history.json"]
        return self._say(history_bytes=random.choice([
            b"[" * 100_000, b"", b"null", b"\xff", data + b" ", data.replace(b'"hop":1', b'"hop":1,"hop":1'),
            b'["\\ud800"]', b"[NaN]",
            json.dumps(json.loads(data), indent=1).encode(), b"[" + b"1," * 300_000 + b"1]",
            b'{"0":' + data[1:-1] + b"}",
        ]))  # fmt: skip

    def kind_run_file(self, random: Random) -> bytes:
        text = self.parts["one"]["run.yaml"].decode()
        return self._say(run=random.choice([
            lambda: b"", lambda: b"\xff\xfe", lambda: b"[]", lambda: b"a: [",
            lambda: b"[" * 100_000, lambda: b"{" * 50_000,
            _bomb, lambda: b"&a [*a]", lambda: b"a: &a [" + b"*a," * 9 + b"]",
            lambda: b"!!python/object/apply:os.system [id]",
            lambda: text.replace("batch_size: 8", "batch_size: 9").encode(), lambda: text.replace("Domain1",
            "Dom\u0430in1").encode(),
            f"{text}\nextends: ../../secret.yaml\n".encode,
            f"{text}\nextends: /etc/passwd\n".encode,
            lambda: text.replace("name: fundus", "name: midline").encode(), lambda: text.replace("name: relay",
            "name: si").encode(),
            lambda: text.replace("task_id: 1", "task_id: 7").encode(), f"{text}\nmore: 1\n".encode,
            lambda: text.replace("batch_size: 8", f"batch_size: {'8' * 5000}").encode(), lambda: text.encode("utf-16"),
            lambda: text.encode() + b"#" * (1 << 20), lambda: text.replace("batch_size: 8",
            "batch_size: .nan").encode(),
        ])())  # fmt: skip

    def kind_other_run(self, random: Random) -> bytes:
        """Everything fits together, but it is another relay than the one that is known here."""
        text = self.parts["one"]["run.yaml"].decode().replace("batch_size: 8", f"batch_size: {random.choice([4, 6, 10])}")
        digest = parse_run(text).digest
        return self._say(run=text.encode(), manifest=lambda made: {**made, "run": digest})

    def kind_card(self, random: Random) -> bytes:
        texts = [b"\xff\xfe", b"\x1b]0;owned\x07", b"ok\rtrusted", b"\x00", "\u202e".encode(), b"\x9b31m"]
        return self._say(card=random.choice(texts))

    def kind_large_member(self, random: Random) -> bytes:
        name = random.choice(["signature.json", "run.yaml", "MODEL_CARD.md", "history.json"])
        size = container.MEMBERS[name] + random.choice([1, 512])
        return packed({**self.parts["one"], name: b" " * size})


class _Disillusioned(KeyFolder):
    """A site that trusts the first one no more."""

    @property
    def roster(self) -> Any:
        found = super().roster
        found.revoke("north")
        return found


def _differs(before: bytes, after: bytes) -> bytes:
    return after if after != before else after + b"\0"


def _loose(value: Any) -> bytes | None:
    try:
        return loose(value)
    except (ValueError, RecursionError):
        return None


def _age(data: bytes, recipient: str) -> bytes:
    return bytes(pyrage.encrypt(data, [pyrage.x25519.Recipient.from_str(recipient)]))


def _signer(keys: KeyFolder) -> dict[str, str]:
    return {"name": keys.card.name, "fingerprint": keys.card.fingerprint}


def _full_signer(keys: KeyFolder) -> dict[str, str]:
    return {**_signer(keys), "public_key": keys.card.public_key}


def _hint(parts: Parts, fingerprint: str) -> Parts:
    found = json.loads(parts["signature.json"])
    found["verificationMaterial"]["publicKey"]["hint"] = fingerprint
    return {**parts, "signature.json": loose(found)}


def _statement_by(parts: Parts, keys: KeyFolder) -> Parts:
    from relay_core.bundle import canonical, signing

    digests = {name: canonical.sha256(data) for name, data in parts.items() if name != "signature.json"}
    return {**parts, "signature.json": signing.sign("mutation", digests, None, keys)}


def _with_header(parts: Parts, target: str, size_field: bytes | None = None, **change: Any) -> bytes:
    """The members, one of them under a changed header with a right checksum."""
    out = b""
    for name, content in parts.items():
        block = member(name, content)
        if name == target:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in change.items():
                setattr(info, key, value)
            head = bytearray(
                info.tobuf(tarfile.GNU_FORMAT)[:512] if len(info.name) > 90 else info.tobuf(tarfile.USTAR_FORMAT)
            )
            if size_field is not None:
                head[124:136] = size_field[:12]
                head[148:156] = b" " * 8
                head[148:156] = b"%06o\0 " % sum(head)
            if bytes(head) == block[:512]:
                head[500] = 1
            block = bytes(head) + block[512:]
        out += block
    return out + bytes(1024)


def _tensors(parts: Parts) -> dict[str, tuple[str, np.ndarray]]:
    made = json.loads(parts["manifest.json"])
    table = weights.read_table(made["tensors"])
    data = parts["weights.safetensors"]
    found = {}
    for name, tensor in weights.locate(table).items():
        values = np.frombuffer(data[tensor.begin : tensor.begin + tensor.size], tensor.numpy)
        found[name] = (tensor.dtype, values.reshape(tensor.shape))
    return found


def _safetensors(entries: dict[str, Any], body: bytes) -> bytes:
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + body


def _bomb() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines).encode()


def _rsa_pem() -> str:
    """A public key in a form that the reader's library knows,
    of a kind that it does not: SPKI with an unknown algorithm."""
    spki = bytes.fromhex("3014300b06092a864886f70d0109ff03050001020304")
    return "-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(spki).decode() + "\n-----END PUBLIC KEY-----\n"


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Every name below a folder with mode, and digest or link target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, hashlib.sha256(content).hexdigest())
    return found


class Range:
    """Where they are tried: a folder with things beside and below the staging folder that must stay as they are."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder, self.out = world, folder, folder / "site" / "out"
        (self.out / "task_9").mkdir(parents=True)
        (self.out / "kept.txt").write_text("kept")
        (self.out / "imports.json").write_text("[]")
        (folder / "secret.yaml").write_text("secret: 1")
        (folder / "signature.json").write_text("not this one")
        self.clean = snapshot(folder)
        self.stick = folder.parent / f"{folder.name}.relay"

    def attempt(self, case: Case) -> tuple[str | None, str | None]:
        """(code of the refusal, fault) of a case."""
        self.stick.write_bytes(case.data)
        options = {"keys": case.keys} if case.keys else {}
        code, fault = None, "accepted"
        try:
            self.world.receive(self.stick, case.site, self.out, case.known, **options)
        except BundleError as error:
            code, fault = error.code, None
            if not all(line.isprintable() for line in str(error).split("\n")):
                fault = f"unprintable message: {error!r}"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"[:300]
        after = snapshot(self.folder)
        if after != self.clean:
            fault = f"{fault or ''} left {sorted(after.items() ^ self.clean.items())[:4]}"
            self._restore()
        return code, fault

    def _restore(self) -> None:
        import shutil

        for name in snapshot(self.folder).keys() - self.clean.keys():
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def bombard(world: World, folder: Path, count: int, seed: int, say: Callable[[str], object] = lambda line: None) -> Tally:
    """Try `count` mutations, every kind equally often; valid bundles in between must be accepted all along."""
    (folder / "forge").mkdir(parents=True)
    forge, tally = Forge(world, folder / "forge"), Tally()
    target = Range(world, folder / "range")
    kinds = list(forge.kinds)
    begin = time.monotonic()
    for number in range(count):
        if number % 500 == 0:
            for name in ("one", "half", "sealed"):  # the control: it is the mutation that is refused, not everything
                stick = folder / "control.relay"
                stick.write_bytes(forge.files[name])
                world.receive(stick, 2, folder / f"control-{name}-{number}")
            say(f"{number} of {count}, {time.monotonic() - begin:.0f} s, {len(tally.faults)} faults")
        kind = kinds[number % len(kinds)]
        random = Random(f"{seed}/{number}")
        code, fault = target.attempt(forge.case(kind, random))
        tally.kinds[kind] += 1
        tally.by_kind.setdefault(kind, Counter())[code or "FAULT"] += 1
        tally.codes[code or "FAULT"] += 1
        if fault:
            tally.faults.append(f"{kind} #{number}: {fault}")
    return tally


def main() -> None:
    """Run and print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        world = World.make(Path(work) / "world")
        say = partial(print, file=sys.stderr, flush=True)
        tally = bombard(world, Path(work) / "mutations", args.count, args.seed, say)
    print(json.dumps(tally.to_json(), indent=1))
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
