"""Files that ask for much, hang, or would write to the terminal: one clear error, at once and in little memory."""

import contextlib
import gzip
import io
import json
import os
import random
import tarfile
import tracemalloc

import numpy as np
import pytest
from test_data_cifar import FILES, SPEC

import tinyres as tr
from tinyres.benchmarks import report
from tinyres.cli import main
from tinyres.data.cifar import load_archive, unpack
from tinyres.errors import CheckpointError, DataError, UsageError
from tinyres.files import parse_json
from tinyres.train import Trainer, checkpoint, load_network
from tinyres.train.progress import Silent
from tinyres.weights import load_file, save_safetensors

MB = 2**20


@pytest.fixture
def little_memory():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * MB, f"{peak / MB:.0f} MB"


# --- checkpoints -----------------------------------------------------------------------------------------------------------


def network_file(path, arrays, network, mean=0.5):
    texts = {"network": network, "normalisation": {"mean": mean, "scale": 1.0}}
    checkpoint.write(path, arrays, {}, texts)
    return path


EMPTY = {f"a{i}": np.zeros(0, np.float32) for i in range(1300)}
ASKS_FOR_MUCH = {
    "ten million classes, justified by an empty array": (
        {"fc.weight": np.zeros((10**7, 0), np.float32), **{f"a{i}": np.zeros(0, np.float32) for i in range(20)}},
        {"name": "resnet20", "num_classes": 10**7},
    ),
    "the same, by an array of another axis": (
        {"fc.weight": np.zeros((10**7, 0, 64), np.float32), **{f"a{i}": np.zeros(0, np.float32) for i in range(20)}},
        {"name": "resnet20", "num_classes": 10**7},
    ),
    "many classes, by a thin array": (
        {"fc.weight": np.zeros((10**6, 1), np.uint8), "x": np.zeros(200_000, np.uint8), **EMPTY},
        {"name": "resnet20", "num_classes": 10**6},
    ),
    "1,202 layers, by 1,300 empty arrays": (
        {"fc.weight": np.zeros((10, 64), np.float32), **EMPTY},
        {"name": "resnet1202", "num_classes": 10},
    ),
    "a depth of many digits": (
        {"fc.weight": np.zeros((10, 64), np.float32)},
        {"name": "resnet" + "9" * 5000, "num_classes": 10},
    ),
}


@pytest.mark.parametrize("case", ASKS_FOR_MUCH)
def test_a_checkpoint_gets_no_more_than_it_brings(case, tmp_path, little_memory):
    path = network_file(tmp_path / "a.safetensors", *ASKS_FOR_MUCH[case])
    with pytest.raises(CheckpointError, match="which are not those of the network that it names"):
        load_network(path)


@pytest.mark.parametrize("head", [np.zeros((10**7, 0), np.float32), np.zeros((10**6, 1), np.uint8)])
def test_an_import_gets_no_more_than_it_brings(head, tmp_path, little_memory, capsys):
    save_safetensors(tmp_path / "a.safetensors", {"fc.weight": head})
    command = ["import-weights", str(tmp_path / "a.safetensors"), "--model", "resnet20", "--out", str(tmp_path / "b")]
    assert main(command) == 2 and "fc.weight is" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "plain8", "plain20", "resnet110", "resnet164"])
def test_networks_of_our_own_are_loaded(name, tmp_path):
    network = {"name": name, "num_classes": 3}
    model = tr.models.build(**network)
    checkpoint.save_network(tmp_path / "a.safetensors", model, network, 0.5, 2.0)
    assert load_network(tmp_path / "a.safetensors").network == network


@pytest.mark.parametrize("mean", [10**400, "x", [[1.0]], {"a": 1}, None])
def test_a_normalisation_that_is_none_is_refused(mean, tmp_path):
    model = tr.models.resnet(8)
    network_file(tmp_path / "a.safetensors", model.state_dict(), {"name": "resnet8", "num_classes": 10}, mean)
    with pytest.raises(CheckpointError, match="lacks the normalisation"):
        load_network(tmp_path / "a.safetensors")


def test_metadata_that_is_null_is_no_metadata(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"w": np.ones(2, np.float32)})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = {"__metadata__": None, **json.loads(data[8 : 8 + length])}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with contextlib.suppress(CheckpointError):  # where the package safetensors refuses it
        assert load_file(path)[1] == {}
    with pytest.raises(CheckpointError):
        checkpoint.read(path)


# --- archives --------------------------------------------------------------------------------------------------------------


def archive(tmp_path, *members, level=9):
    """A tar.gz of (TarInfo, bytes that follow its header)."""
    path = tmp_path / SPEC.filename
    with gzip.open(path, "wb", compresslevel=level) as file:
        for member, content in members:
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            file.write(content + bytes(-len(content) % 512))
        file.write(bytes(1024))
    return path


def member(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


FIRST = f"{SPEC.folder}/data_batch_1"
BIG = 200 * MB
HOSTILE = {
    "data_batch_1 is a sparse file": [(member(FIRST, BIG, tarfile.GNUTYPE_SPARSE), b"")],
    r"e\\nf\\x1b is a sparse file": [(member("e\nf\x1b", 3, tarfile.GNUTYPE_SPARSE), b"abc")],
    "a sparse file, which": [(member("x", 99, tarfile.XHDTYPE), b"22 GNU.sparse.major=1\n"), (member(FIRST, 3), b"abc")],
    "a header of 209,715,200 bytes": [(member("x", BIG, tarfile.XHDTYPE), bytes(BIG)), (member(FIRST, 3), b"abc")],
    "a header of 65,537 bytes": [(member("x", 2**16 + 1, tarfile.XHDTYPE), bytes(2**16 + 1)), (member(FIRST, 3), b"abc")],
    "a header of 209,715,199 bytes": [(member("x", BIG - 1, tarfile.GNUTYPE_LONGNAME), b"x" * BIG)],
    "a header of 209,715,198 bytes": [(member("x", BIG - 2, tarfile.XGLTYPE), bytes(BIG))],
    "a header of 209,715,197 bytes": [(member("x", BIG - 3, tarfile.GNUTYPE_LONGLINK), b"")],
    "it says that it unpacks to more than 16 times": [(member(FIRST, BIG), bytes(BIG))],
    "to more than 16 times its own size": [(member("other", BIG), bytes(BIG))],
    "unexpected end of data": [(member(FIRST, 2**20), b"")],
    "data_batch_1 is not a plain file": [(member(FIRST, 0, tarfile.DIRTYPE), b"")],
    "not a plain file": [(member(FIRST, 0, tarfile.LNKTYPE), b"")],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_archive_that_asks_for_much_is_refused_by_name(case, tmp_path):
    path = archive(tmp_path, *HOSTILE[case])
    assert path.stat().st_size < MB / 2
    tracemalloc.start()
    with pytest.raises(DataError, match=case):
        unpack(SPEC, path, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * MB and os.listdir(tmp_path) == [SPEC.filename]


def test_an_archive_with_headers_of_python_s_own_is_read(tmp_path):
    path = tmp_path / SPEC.filename
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for file, data in FILES.items():
            info = member(f"{SPEC.folder}/{file}", len(data))
            info.mtime, info.pax_headers = 1234.5, {"comment": "x" * 300}
            tar.addfile(info, io.BytesIO(data))
    assert len(load_archive(SPEC, tmp_path).train_labels) == 100


@pytest.mark.parametrize("file", SPEC.files)
def test_an_unpacked_file_that_is_far_too_large_is_not_read(file, tmp_path, little_memory):
    (tmp_path / SPEC.folder).mkdir()
    for name, data in FILES.items():
        (tmp_path / SPEC.folder / name).write_bytes(data)
    os.truncate(tmp_path / SPEC.folder / file, BIG)  # which takes no place on the disk
    with pytest.raises(DataError, match=f"{file} has 209,715,200 bytes; no such file of CIFAR has over 1,"):
        load_archive(SPEC, tmp_path)


def good_archive():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for file, data in FILES.items():
            tar.addfile(member(f"{SPEC.folder}/{file}", len(data)), io.BytesIO(data))
    return out.getvalue()


def test_a_mutated_archive_is_read_or_refused(tmp_path):
    whole, rng = good_archive(), random.Random(0)
    heads = [i * 512 for i in range(len(whole) // 512) if whole[i * 512 + 257 : i * 512 + 262] == b"ustar"]
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.choice(heads) + rng.randrange(512)] = rng.randrange(256)
        if rng.random() < 0.5:  # with a checksum that fits, so that it is looked at
            for start in heads:
                block = data[start : start + 512]
                block[148:156] = b" " * 8
                data[start + 148 : start + 156] = b"%06o\0 " % sum(block)
        path = tmp_path / SPEC.filename
        path.write_bytes(gzip.compress(bytes(data), 1))
        try:
            unpack(SPEC, path, tmp_path)
            outcomes.add("read")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


# --- JSON ------------------------------------------------------------------------------------------------------------------

RESULT = {
    "benchmark": "train",
    "machine": {"processor": "p", "threads": 2},
    "cases": [{"model": "resnet20", "batch": 8, "rows": [{"row": "numpy", "median_seconds": 0.5}]}],
}
WRONG = [None, "x", [], {}, -1, 0, float("nan"), float("inf"), 10**400, True, "\x1b[2J", "y" * 10**5, [[[1, 2]]], [[1e39]]]


def mutated(value, rng):
    """A copy with one part replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        return (
            {**value, key: mutated(value[key], rng)} if rng.random() < 0.9 else {k: v for k, v in value.items() if k != key}
        )
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return [*value[:i], mutated(value[i], rng), *value[i + 1 :]]
    return rng.choice(WRONG)


MS = [
    {"case": "c", "kernel": "k", "model": "m", "batch": 2, "row": "r", "ms": 3.0},
    {"model": "m", "error": "out of memory"},
]
RESULTS = [
    RESULT,
    {"benchmark": "ops", "machine": {}, "rows": [{"case": "c", "row": "r", "median_seconds": 2.0}]},
    {"benchmark": "profile", "machine": {}, "rows": [{"kernel": "k", "seconds": 2.0}], "seconds": 1.0},
    {"benchmark": "gpu", "machine": {}, "gpu": {}, "tiny": True, "kernels": MS[:1], "bandwidth": MS[:1], "steps": MS},
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result["benchmark"])
def test_a_mutated_benchmark_result_is_compared_or_refused(result, tmp_path, capsys):
    path, rng = tmp_path / "a.json", random.Random(1)
    (tmp_path / "good.json").write_text(json.dumps(result))
    assert main(["bench", "compare", *[str(tmp_path / "good.json")] * 2]) == 0
    for _ in range(100):
        path.write_text(json.dumps(mutated(result, rng)))
        for pair in ((path, tmp_path / "good.json"), (tmp_path / "good.json", path)):
            status = main(["bench", "compare", *map(str, pair)])
            printed = capsys.readouterr()
            assert status in (0, 2) and "\x1b" not in printed.out + printed.err
            assert status == 0 or len(printed.err.splitlines()) == 1
    deep = "[" * 100_000
    path.write_text(deep)
    with pytest.raises(UsageError, match="nested too deep"):
        report.load(path)


RUN = "train --data shapes --limit-train 32 --limit-test 8 --batch-size 16 --model resnet8 --epochs 1 --backend numpy --out"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main([*RUN.split(), str(folder)]) == 0
    return folder


CONFIGS = ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "{", b"\xff\xfe\x00", '{"processes": 3}', "null", " " * 2**21]


@pytest.mark.parametrize("content", CONFIGS, ids=range(len(CONFIGS)))
def test_a_damaged_config_does_not_stop_a_resumed_run(content, run_folder, capsys):
    (run_folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main([*RUN.split(), str(run_folder), "--resume"]) == 0, capsys.readouterr().err
    assert json.loads((run_folder / "config.json").read_text())["processes"][0]["backend"] == "numpy"


def test_a_checkpoint_with_mutated_texts_is_used_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyres.train.folder.write_curves", lambda *_: None)
    rng, outcomes, data = random.Random(2), set(), tr.data.shapes(n_train=16, n_test=4)

    def trainer():
        return Trainer("resnet8", data, epochs=1, batch_size=8, out=tmp_path / "run", display=Silent())

    with tr.use_backend("numpy"):
        trainer().fit()
        file = tmp_path / "run" / "last.safetensors"
        arrays, state, texts = checkpoint.read(file)
        for _ in range(60):
            key = rng.choice(list(texts))
            checkpoint.write(file, arrays, state, {})
            wrong = {name: json.dumps(value) for name, value in {**texts, key: mutated(texts[key], rng)}.items()}
            everything = load_file(file)[0]
            save_safetensors(file, everything, wrong | {"crc32": checkpoint._crc32(everything, wrong)})
            for use in (lambda: trainer().fit(resume=True), lambda: load_network(file)):
                try:
                    use()
                    outcomes.add("used")
                except (CheckpointError, UsageError) as error:
                    assert str(file.parent) in str(error) and len(str(error)) < 2000
                    outcomes.add("refused")
    assert outcomes == {"used", "refused"}


def test_json_that_cannot_be_read_is_a_value_error():
    for text in ("[" * 100_000, "x", b"\xff", '{"a":' * 50_000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
