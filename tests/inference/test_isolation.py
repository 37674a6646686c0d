"""Uploads that would hurt their reader hurt a process that nobody misses."""

import gzip
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from relay_core.errors import ExportError, ImageError, ImageTooLargeError
from relay_core.inference import Decoders, Question
from relay_core.inference.isolation import _Decoder
from tests.imaging import dicoms
from tests.imaging.test_study import GREY, png, saved

ASKED = Question("m", 1, "cpu", "segmentation", ("background", "bright"), 1, 32, None, {})


def network(images, outputs):
    bright = images[:, :1] * 2 - 1
    made = {"logits": np.concatenate([-bright, bright], axis=1), "looks": np.zeros((len(images), 3), np.float32)}
    return [made[name] for name in outputs]


@pytest.fixture(scope="module")
def decoders():
    os.environ["RELAY_SECRET_KEY"] = "a secret of this process"
    made = Decoders(seconds=30)
    made.start()
    yield made
    del os.environ["RELAY_SECRET_KEY"]
    made.close()


def forks(decoders):
    return [
        int(pid) for pid in Path(f"/proc/{decoders._server.pid}/task/{decoders._server.pid}/children").read_text().split()
    ]


def peak():
    """The most memory that this process ever had, in MiB."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1]) >> 10


def deflated():
    """2 MB that inflate to 2 GiB, and the transfer syntax stands behind 70 kB of other elements of group 2."""
    import zlib

    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(squeeze.compress(b"\0" * (1 << 24)) for _ in range(128)) + squeeze.flush()
    filler = struct.pack("<HH2sHI", 2, 0x0001, b"OB", 0, 70_000) + b"\0" * 70_000
    syntax = b"1.2.840.10008.1.2.1.99"
    return b"\0" * 128 + b"DICM" + filler + struct.pack("<HH2sH", 2, 0x0010, b"UI", len(syntax)) + syntax + body


def swollen_frame():
    """A header of 64 x 64 with a JPEG 2000 frame that says 12000 x 12000."""
    from pydicom.encaps import encapsulate

    dataset = pydicom.dcmread(io.BytesIO(dicoms.one(np.zeros((64, 64), np.int16))))
    size = struct.pack(">HHIIIIIIIIH", 47, 0, 12000, 12000, 0, 0, 12000, 12000, 0, 0, 1) + b"\x07\x01\x01"
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51" + size + b"\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    return saved(dataset)


def inflated():
    """1 MB of gzip whose header says few bits and many doubles."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((1024, 1024, 100))
    header["bitpix"] = 1
    header["vox_offset"] = 352
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as file:
        file.write(header.binaryblock + b"\0" * 4)
        for _ in range(64):
            file.write(b"\0" * (1 << 24))
    return packed.getvalue()


def scanned():
    """A progressive JPEG with 200 more scans."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (800, 800), np.uint8)).save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * 200 + b"\xff\xd9"


@pytest.mark.parametrize(
    ("attack", "words"),
    [(deflated, "transfer syntax"), (swollen_frame, "DICOM"), (inflated, "MiB of voxels"), (scanned, "scans")],
)
def test_what_was_seen_to_take_gigabytes_or_minutes_is_refused_unread(decoders, attack, words):
    content, before = attack(), peak()
    with pytest.raises(ImageError, match=words):
        decoders.answer(content, ASKED, network)
    assert peak() - before < 3 * len(content) / (1 << 20) + 50
    assert decoders.answer(png(GREY), ASKED, network).media_type == "application/json"


def test_memory_and_time_are_limited():
    content = png(np.zeros((5000, 5000), np.uint8))
    small = Decoders(memory=100 << 20)
    try:
        # a library in C that gets no memory may end the process before it can say why
        with pytest.raises(ImageError, match=r"100 MiB|died of it"):
            small.answer(content, ASKED, network)
        assert b'"width": 30' in small.answer(png(GREY), ASKED, network).body
    finally:
        small.close()
    hasty = Decoders(seconds=0.05)
    try:
        with pytest.raises(ImageTooLargeError, match=r"0\.05 seconds"):
            hasty.answer(content, ASKED, network)
    finally:
        hasty.close()


def test_a_decoder_that_dies_harms_nobody_else(decoders):
    fine, halfway, go_on = [], threading.Event(), threading.Event()

    def slowly(images, outputs):
        halfway.set()
        assert go_on.wait(30)
        return network(images, outputs)

    bystander = threading.Thread(target=lambda: fine.append(decoders.answer(png(GREY), ASKED, slowly)))
    bystander.start()
    assert halfway.wait(30)
    spared = forks(decoders)

    def deadly(images, outputs):
        (victim,) = set(forks(decoders)) - set(spared)
        os.kill(victim, signal.SIGKILL)
        return network(images, outputs)

    with pytest.raises(ImageError, match="died"):
        decoders.answer(png(GREY), ASKED, deadly)
    go_on.set()
    bystander.join(30)
    assert len(fine) == 1
    assert forks(decoders) == []


def test_the_server_of_decoders_is_started_again(decoders):
    os.kill(decoders._server.pid, signal.SIGKILL)
    decoders._server.wait()
    assert b'"width": 30' in decoders.answer(png(GREY), ASKED, network).body


def test_a_server_that_dies_while_a_decoder_works_stops_nobody(decoders):
    """The decoder goes on, ends, and a new server is neither waited for nor hit by what belongs to the old one."""
    done = []

    def outlives(images, outputs):
        os.kill(decoders._server.pid, signal.SIGKILL)
        decoders._server.wait()
        done.append(decoders.answer(png(GREY), ASKED, network).media_type)
        return network(images, outputs)

    assert decoders.answer(png(GREY), ASKED, outlives).media_type == "application/json"
    server = decoders._server.pid
    assert done == ["application/json"]
    assert decoders.answer(png(GREY), ASKED, network).media_type == "application/json"
    assert decoders._server.pid == server


def test_a_model_that_overflows_is_not_the_images_fault(decoders):
    def overflows(images, outputs):
        return [result * np.float32(np.nan) for result in network(images, outputs)]

    with pytest.raises(ExportError, match="not finite"):
        decoders.answer(png(GREY), ASKED, overflows)


def test_a_decoder_that_works_for_ever_runs_out_of_processor_time():
    script = "from relay_core.inference.decoder import confine\n"
    script += "confine({'memory': 1 << 30, 'cpu': 1, 'file': 1, 'folder': '/tmp'})\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGXCPU


def test_decoders_know_no_secret_and_leave_no_file(decoders, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def look(images, outputs):
        (fork,) = forks(decoders)
        seen.append(Path(f"/proc/{fork}/environ").read_bytes())
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        os.kill(fork, signal.SIGKILL)
        return network(images, outputs)

    with pytest.raises(ImageError):
        decoders.answer(png(GREY), ASKED, look)
    assert b"RELAY_" not in seen[0]
    assert len(seen[1]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "message",
    [
        {"run": ["logits", "looks"], "shape": [1, 1, 32, 33]},
        {"run": ["logits", "looks"], "shape": [1 << 20, 1, 32, 32]},
        {"run": ["logits", "looks"], "shape": []},
        {"run": ["everything"], "shape": [1, 1, 32, 32]},
        {"run": 5, "shape": [1, 1, 32, 32]},
        {"run": ["logits", "looks"], "shape": "much"},
        {"run": ["logits", "looks"], "shape": [True, 1, 32, 32]},
    ],
)
def test_a_decoder_that_was_taken_over_is_not_believed(message):
    ours, theirs = socket.socketpair()
    decoder = _Decoder(ours, 1, 1, lambda: 0)
    try:
        with pytest.raises(ImageError, match="broke off"):
            decoder.images(message, ASKED)
    finally:
        decoder.close()
        theirs.close()


def test_what_calls_it_hears_sizes_and_progress_and_may_end_it(decoders):
    sizes, slices = [], []
    volume = np.random.default_rng(3).integers(0, 1000, (40, 12, 16)).astype(np.int16)
    content = dicoms.packed(dicoms.stack(volume))
    decoders.answer(content, ASKED, network, lambda *size: sizes.append(size), slices.append)
    assert (sizes, slices) == ([(40, 12, 16)], [32, 40])

    def too_many(*size):
        raise OverflowError

    with pytest.raises(OverflowError):
        decoders.answer(content, ASKED, network, too_many)
    assert forks(decoders) == []
