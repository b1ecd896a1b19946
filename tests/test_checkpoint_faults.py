"""What happens to checkpoints: the writer killed, the disk full, the file cut short or altered."""

import errno
import multiprocessing
import os
import random
import resource
import signal
import time
import zipfile
from collections import OrderedDict

import pytest
import torch

from tests.training_runs import fork_server
from utils.checkpoint import CHECKPOINT_KEYS, load_checkpoint, save_checkpoint
from utils.checkpoint_folder import remove_old
from utils.errors import UserError


def made_checkpoint(step: int, numel: int = 1000) -> dict:
    """A checkpoint of which every value says the step."""
    return dict.fromkeys(sorted(CHECKPOINT_KEYS), 0) | {
        "step": step,
        "model_state_dict": {"weight": torch.full((numel,), float(step)), "half": torch.full((3, 5), step).bfloat16()},
        "optimizer_state_dict": OrderedDict(state={0: {"step": torch.tensor(float(step))}}, groups=[{"lr": step / 3}]),
        "rng_states": torch.full((64,), step, dtype=torch.uint8),
        "args": {"name": f"step {step}", "flags": (True, None, 2**70, -0.0)},
        "frozen_identity": {},
    }


def same(a: object, b: object) -> bool:
    """Equal in every type, key, value and bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.requires_grad == b.requires_grad and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def assert_refused(path) -> None:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "; " in message and "\n" not in message


def save_for_ever(path, step: int, begun) -> None:
    checkpoint = made_checkpoint(step, numel=500_000)
    begun.send(True)
    while True:
        save_checkpoint(checkpoint, path)
        step += 1
        checkpoint = made_checkpoint(step, numel=500_000)


def start_saving(path, step: int) -> multiprocessing.Process:
    """A new process that saves one checkpoint after the other; it is about to begin."""
    server = fork_server()
    ready, begun = server.Pipe(duplex=False)
    process = server.Process(target=save_for_ever, args=(path, step, begun))
    process.start()
    assert ready.poll(60) and ready.recv()
    return process


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "checkpoint_epoch_1.pth"
    started = time.monotonic()
    save_checkpoint(made_checkpoint(1, numel=500_000), path)
    seconds = min(time.monotonic() - started, 1.0)
    rng = random.Random(0)
    step, half_written = 1, 0
    for _ in range(20):
        writer = start_saving(path, step + 1)
        time.sleep(rng.uniform(0, 4 * seconds))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        half_written += len(os.listdir(tmp_path)) > 1
        found = load_checkpoint(path)
        assert found["step"] >= step
        step = found["step"]
        del found["digest"]
        assert same(found, made_checkpoint(step, numel=500_000))
        remove_old(tmp_path, keep_last=1)
        assert os.listdir(tmp_path) == [path.name]
    assert half_written >= 3 and step > 3, "kills met writers at work"


@pytest.mark.parametrize("limit", [0, 1000, 50_000, -30])
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(limit, tmp_path):
    path = tmp_path / "checkpoint_epoch_1.pth"
    save_checkpoint(made_checkpoint(1, numel=50_000), path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit if limit >= 0 else len(before) + limit, hard))
    try:
        with pytest.raises(UserError, match=r"epoch_1\.pth: cannot be written \(.*File too large.*free some"):
            save_checkpoint(made_checkpoint(2, numel=50_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    assert load_checkpoint(path)["step"] == 1


def test_a_disk_found_full_when_it_is_flushed(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_epoch_1.pth"
    save_checkpoint(made_checkpoint(1), path)

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"\(No space left on device\), nothing was changed; free some space"):
        save_checkpoint(made_checkpoint(2), path)
    assert load_checkpoint(path)["step"] == 1 and os.listdir(tmp_path) == [path.name]


def test_the_file_then_its_folder_are_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    save_checkpoint(made_checkpoint(1), tmp_path / "model.pth")
    assert flushed == [str(tmp_path / f".model.pth.{os.getpid()}.tmp"), str(tmp_path)]


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_a_checkpoint_cut_short_is_refused(share, tmp_path):
    path = tmp_path / "model.pth"
    save_checkpoint(made_checkpoint(1), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert_refused(path)


def test_a_checkpoint_without_its_last_byte_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    save_checkpoint(made_checkpoint(1), path)
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(path)


def flipped(data: bytes, bit: int) -> bytes:
    altered = bytearray(data)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def test_a_flipped_bit_of_a_tensor_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    checkpoint = made_checkpoint(3)
    save_checkpoint(checkpoint, path)
    data = path.read_bytes()
    rng = random.Random(0)
    state = checkpoint["model_state_dict"]
    for tensor in (state["weight"], state["half"].view(torch.int16), checkpoint["rng_states"]):
        content = tensor.numpy().tobytes()
        start = data.index(content)
        for _ in range(30):
            path.write_bytes(flipped(data, rng.randrange(8 * start, 8 * (start + len(content)))))
            assert_refused(path)
    path.write_bytes(data)
    assert load_checkpoint(path)["step"] == 3


def pickle_span(path) -> range:
    """Places of the bytes of the archive's pickle in the file."""
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    start = path.read_bytes().index(pickled)
    return range(start, start + len(pickled))


@pytest.mark.filterwarnings("ignore")  # torch.load remarks on what it finds in altered pickles
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "model.pth"
    save_checkpoint(made_checkpoint(3), path)
    whole = load_checkpoint(path)
    data = path.read_bytes()
    rng = random.Random(0)
    places = [rng.randrange(len(data)) for _ in range(300)] + rng.choices(pickle_span(path), k=300)
    refused = 0
    for place in places:
        path.write_bytes(flipped(data, 8 * place + rng.randrange(8)))
        try:
            found = load_checkpoint(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
        else:
            assert same(found, whole), place
    assert refused > 300
