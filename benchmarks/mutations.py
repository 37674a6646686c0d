"""Mutated files of every format sent to `predict`, while a bystander calls too: who fails, how long it takes, what grows.

    python -m benchmarks.mutations [--files 10000] [--seed 0] [--attackers 2]

The attackers share one token; the bystander has another, and sends a small picture to `predict` and a tensor to `/v2` in
turn. An attacker's answer may be anything but a failure of the service (a status of 500 or more, a connection that breaks).
"""

from __future__ import annotations

import argparse
import collections
import gzip
import io
import json
import random
import threading
import time
import zipfile
from collections.abc import Callable

import httpx
import nibabel as nib
import numpy as np
import pydicom
from PIL import Image

from benchmarks import served
from benchmarks.record import Record, script
from benchmarks.site import Site, held, running
from services.site import auth


def seeds() -> dict[str, list[bytes]]:
    """Small sound files by format."""
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 255, (40, 48), np.uint8), rng.integers(0, 255, (40, 48, 3), np.uint8)

    def picture(values: np.ndarray, kind: str, **options: object) -> bytes:
        content = io.BytesIO()
        Image.fromarray(values).save(content, kind, **options)
        return content.getvalue()

    voxels = rng.integers(0, 900, (24, 20, 4)).astype(np.int16)
    nifti = nib.Nifti1Image(voxels, np.diag([1.0, 1, 2, 1]))
    plain = [_dicom(slice_, i) for i, slice_ in enumerate(voxels.transpose(2, 1, 0))]
    series = io.BytesIO()
    with zipfile.ZipFile(series, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, content in enumerate(plain):
            archive.writestr(f"{i}.dcm", content)
    return {
        "PNG": [picture(grey, "PNG"), picture(colour, "PNG")],
        "JPEG": [picture(colour, "JPEG"), picture(grey, "JPEG", progressive=True)],
        "TIFF": [picture(grey, "TIFF"), picture(colour, "TIFF", compression="tiff_lzw")],
        "NIfTI": [nifti.to_bytes(), gzip.compress(nib.Nifti2Image(voxels, np.eye(4)).to_bytes())],
        "DICOM": [plain[0], _jpeg2000(plain[0])],
        "zip": [series.getvalue(), *plain],
    }


def _dicom(values: np.ndarray, number: int) -> bytes:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    made = pydicom.Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID, made.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.SOPClassUID, made.Modality, made.PatientID = CTImageStorage, "CT", "P"
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    made.Rows, made.Columns = values.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.PixelSpacing, made.ImageOrientationPatient = [1.0, 1.0], [1.0, 0, 0, 0, 1, 0]
    made.ImagePositionPatient, made.RescaleSlope, made.RescaleIntercept = [0.0, 0, 2.0 * number], 1, 0
    made.WindowCenter, made.WindowWidth = 400, 800
    made.PixelData = values.astype(np.int16).tobytes()
    content = io.BytesIO()
    made.save_as(content, enforce_file_format=True)
    return content.getvalue()


def _jpeg2000(content: bytes) -> bytes:
    """The same with a compressed frame."""
    from pydicom.encaps import encapsulate

    made = pydicom.dcmread(io.BytesIO(content))
    frame = io.BytesIO()
    Image.fromarray(made.pixel_array.astype(np.uint8)).save(frame, "JPEG2000", irreversible=False)
    codestream = frame.getvalue()
    made.PixelData = encapsulate([codestream[codestream.index(b"\xff\x4f\xff\x51") :]])
    made["PixelData"].is_undefined_length = True
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    saved = io.BytesIO()
    made.save_as(saved, enforce_file_format=True)
    return saved.getvalue()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few changes: bits, bytes of extreme values, numbers, pieces cut, doubled or moved, the end cut off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        if not data:
            break
        near = min(len(data), 512) if chance.random() < 0.6 else len(data)  # headers, rather than pixels
        at = chance.randrange(near)
        match chance.randrange(7):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                data[at : at + 4] = chance.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, "little")
            case 3:
                data[at : at + 4] = chance.getrandbits(32).to_bytes(4, "big")
            case 4:
                del data[at : at + chance.randrange(1, 64)]
            case 5:
                data[at:at] = data[at : at + chance.randrange(1, 4096)]
            case _:
                del data[chance.randrange(len(data)) :]
    return bytes(data)


def hostile(files: list[bytes], chance: random.Random) -> bytes:
    """A mutated file, or of a series an archive with a mutated member."""
    if not files[0].startswith(b"PK") or chance.random() < 0.2:
        return mutated(chance.choice(files), chance)
    packed, worse = io.BytesIO(), chance.randrange(1, len(files))
    with zipfile.ZipFile(packed, "w") as archive:
        for i, content in enumerate(files[1:], 1):
            archive.writestr(f"{i}.dcm", mutated(content, chance) if i == worse else content)
    return packed.getvalue()


def attack(site: Site, token: str, files: list[bytes], count: int, seed: int, answers: collections.Counter[str]) -> None:
    """Send mutated files, one after the other."""
    chance = random.Random(seed)
    path = f"{site.url}/api/v1/models/{served.NAME}/predict"
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=300) as client:
        for _ in range(count):
            content = hostile(files, chance)
            try:
                answer = client.post(
                    path, content=content, params={"output": chance.choice(("measurements", "nifti", "all"))}
                )
                code = answer.json().get("code", "") if answer.status_code >= 400 else ""
                answers[f"{answer.status_code} {code}".strip()] += 1
            except httpx.HTTPError as error:
                answers[f"broken: {type(error).__name__}"] += 1


def stand_by(site: Site, over: threading.Event, times: dict[str, list[float]], failures: list[str]) -> None:
    """Call the model as a clinician's systems do, once at least."""
    small = seeds()["PNG"][0]
    values = np.zeros((1, 3, 32, 32), np.float32)
    tensor = {"name": "image", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
    calls: dict[str, Callable[[httpx.Client], httpx.Response]] = {
        "predict": lambda client: client.post(f"{site.url}/api/v1/models/{served.NAME}/predict", content=small),
        "infer": lambda client: client.post(
            f"{site.url}/v2/models/{served.NAME}/infer", json={"inputs": [tensor], "outputs": [{"name": "looks"}]}
        ),
    }
    with httpx.Client(headers={"Authorization": f"Bearer {site.token}"}, timeout=300) as client:
        while True:
            for name, call in calls.items():
                began = time.perf_counter()
                answer = call(client)
                times[name].append((time.perf_counter() - began) * 1e3)
                if answer.status_code != 200:
                    failures.append(f"{name}: {answer.status_code} {answer.text[:200]}")
            if over.wait(0.05):
                return


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    served.arguments(parser, "phantom")
    parser.add_argument("--files", type=int, default=10_000, help="of each format")
    parser.add_argument("--formats", nargs="+", default=["nothing", *seeds()], help="of these formats")
    parser.add_argument("--attackers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--idle", type=float, default=20, help="seconds of the bystander alone")


COLUMNS = {
    "format": "", "answers to the attacker": "", "predict p50 ms": ".0f", "predict p99 ms": ".0f", "infer p50 ms": ".0f",
    "infer p99 ms": ".0f", "failed": "d", "API MiB": ".0f",
}  # fmt: skip


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill the table: latencies are the bystander's, and so is `failed`."""
    with running(RELAY_SERVE_DEVICE="cpu", RELAY_MIN_FREE_MIB="1") as site:
        served.register(site, served.model(args.recipe, tuple(args.set)))
        with site.database.write() as session:
            _, token = auth.create_token(session, site.settings.key, "attacker", "viewer")
        table = record.table("Images from strangers", COLUMNS)
        for name in args.formats:
            answers, times, failures = under_attack(site, token, seeds().get(name, []), args)
            spans = (float(np.percentile(times[way], share)) for way in times for share in (50, 99))
            said = json.dumps(dict(answers.most_common()))
            table.add(name, said, *spans, len(failures), held(site.process.pid))
            for failure in failures[:5]:
                record.note(failure)


def under_attack(
    site: Site, token: str, files: list[bytes], args: argparse.Namespace
) -> tuple[collections.Counter[str], dict[str, list[float]], list[str]]:
    """Answers to the attackers, the bystander's milliseconds by call, and its failures; without files nobody attacks."""
    answers: collections.Counter[str] = collections.Counter()
    times: dict[str, list[float]] = {"predict": [], "infer": []}
    failures: list[str] = []
    over = threading.Event()
    bystander = threading.Thread(target=stand_by, args=(site, over, times, failures))
    bystander.start()
    each = args.files // args.attackers
    attackers = [
        threading.Thread(target=attack, args=(site, token, files, each, args.seed * 1000 + i, answers))
        for i in range(args.attackers if files else 0)
    ]
    for one in attackers:
        one.start()
    for one in attackers:
        one.join()
    if not files:
        time.sleep(args.idle)
    over.set()
    bystander.join()
    return answers, times, failures


main = script(
    __doc__, arguments, measure,
    toy={**served.TOY_SOLVER, "files": 4, "attackers": 1, "idle": 0.1, "formats": ["nothing", "PNG", "zip"]},
)  # fmt: skip

if __name__ == "__main__":
    main()
