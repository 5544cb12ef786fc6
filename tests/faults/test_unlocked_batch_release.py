"""unlocked_batch_release: a worker's shared memory is freed without Python's lock.

What frees memory in a process is seen by a library that stands in front of libc's `munmap` and
`close`: how many pages each call takes out of the process, and whether its thread holds the lock.
Pinning needs an accelerator; here `Tensor.pin_memory` copies into ordinary memory instead. The
loader, its worker and what torch's pinning thread calls are the real ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from speculators_patches.patches.unlocked_batch_release import Batch, release
from tests.compat import running

WATCH = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LARGE = 1 << 20 };
static int (*has_lock)(void);
long watching, locked_pages, locked_closes, unlocked_closes, last_close_locked;

static int locked(void) {
  if (!has_lock) has_lock = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Check");
  return has_lock && has_lock();
}

int munmap(void *start, size_t size) {
  static int (*libc)(void *, size_t);
  if (!libc) libc = (int (*)(void *, size_t))dlsym(RTLD_NEXT, "munmap");
  if (watching && size >= LARGE && locked()) {
    int map = open("/proc/self/pagemap", O_RDONLY);
    for (size_t at = 0; at < size; at += 4096) {
      uint64_t entry = 0;
      pread(map, &entry, 8, ((uintptr_t)start + at) / 4096 * 8);
      locked_pages += entry >> 63;  /* present in this process */
    }
    close(map);
  }
  return libc(start, size);
}

int close(int file) {
  static int (*libc)(int);
  struct stat seen;
  if (!libc) libc = (int (*)(int))dlsym(RTLD_NEXT, "close");
  if (watching && !fstat(file, &seen) && seen.st_size >= LARGE && !seen.st_nlink) {
    last_close_locked = locked();
    if (last_close_locked) locked_closes++; else unlocked_closes++;
  }
  return libc(file);
}
"""

PROGRAM = """
import ctypes, hashlib, json
from speculators_patches import apply
apply(only=["cpu_training"])
import torch
from speculators.train.data import CollateFn
from torch.utils.data import DataLoader
from torch.utils.data._utils import pin_memory as pinning

torch.manual_seed(0)
torch.Tensor.pin_memory = lambda self: self.clone()
watch = ctypes.CDLL(None)
watching = ctypes.c_long.in_dll(watch, "watching")
count = lambda: {name: ctypes.c_long.in_dll(watch, name).value for name in
                 ("locked_pages", "locked_closes", "unlocked_closes")}
samples = [
    {"hidden_states": torch.randn(300, 3072), "input_ids": torch.arange(300),
     "loss_mask": torch.ones(300), "lengths": torch.tensor([300])}
    for _ in range(3)
]

def epoch():
    loader = DataLoader(samples, batch_size=1, num_workers=1, multiprocessing_context="spawn",
                        collate_fn=CollateFn(256, 1024, 3, torch.bfloat16))
    said, digest = [], hashlib.sha256()
    for batch in loader:
        before = count()
        watching.value = 1
        pinned = pinning.pin_memory(batch, None)
        del batch
        watching.value = 0
        after = count()
        last = bool(ctypes.c_long.in_dll(watch, "last_close_locked").value)
        said.append({name: after[name] - before[name] for name in before} | {"last": last})
        digest.update(repr([(k, getattr(v, "shape", v)) for k, v in pinned.items()]).encode())
        for value in pinned.values():
            if isinstance(value, torch.Tensor):
                digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return {"said": said, "digest": digest.hexdigest(), "dict": isinstance(pinned, dict)}

upstream = epoch()
apply(only=["unlocked_batch_release"])
print(json.dumps([upstream, epoch()]))
"""


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or not Path("/proc/self/pagemap").exists():
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(WATCH)
    library = folder / "watch.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-o", library, folder / "watch.c", "-ldl"], check=True
    )
    return library


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_no_page_is_freed_with_the_lock_held(
    version: str, watch: Path, laid_out: Callable[[str], Path]
) -> None:
    laid_out(version)
    env = {"LD_PRELOAD": str(watch)}
    upstream, ours = running.last_json(running.python(version, "-c", PROGRAM, env=env))
    pages = 256 * 3072 * 2 // 4096
    for said in upstream.pop("said"):
        assert said["locked_pages"] == pages
        assert (said["unlocked_closes"], said["last"]) == (0, True)
    for said in ours.pop("said"):
        assert said["locked_pages"] == 0
        assert (said["unlocked_closes"], said["last"]) == (1, False)
    assert ours == upstream
    assert ours["dict"]


def shared(values: torch.Tensor) -> torch.Tensor:
    """The tensor in a mapping of its own, as another process gets it."""
    storage = torch.UntypedStorage._new_shared_fd_cpu(*values.untyped_storage()._share_fd_cpu_())
    return torch.empty(0, dtype=values.dtype).set_(storage, 0, values.shape)


def test_what_others_still_read_keeps_its_content() -> None:
    sent = torch.arange(1 << 18)
    kept = sent.clone()
    got, again = shared(sent), shared(sent)
    assert len({x.data_ptr() for x in (sent, got, again)}) == 3
    release(got)
    assert got.numel() == 0
    assert torch.equal(sent, kept)
    assert torch.equal(again, kept)


def test_descriptors_are_closed() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        release(shared(torch.ones(1 << 18)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_without_a_descriptor_to_spare_it_is_left_to_upstream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_: int) -> int:
        raise OSError(24, "Too many open files")

    got = shared(torch.ones(1 << 18))
    monkeypatch.setattr(os, "dup", none_left)
    release(got)
    assert got.sum() == 1 << 18


def test_memory_shared_by_name_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    got = shared(torch.ones(1 << 18))
    monkeypatch.setattr(torch.multiprocessing, "get_sharing_strategy", lambda: "file_system")
    release(got)
    assert got.sum() == 1 << 18


def test_what_cannot_be_given_back_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: torch.Tensor) -> None:
        raise RuntimeError("Inplace update to inference tensor outside InferenceMode")

    got, sparse = shared(torch.ones(1 << 18)), torch.eye(3).to_sparse()
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(torch.Tensor, "set_", refused)
    release(got)
    release(sparse)
    assert got.sum() == 1 << 18
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_batch_made_in_this_process_is_not_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    """--num-workers 0: the data set may still hold what it gave."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    batch = Batch(states=torch.ones(4), empty=torch.empty(0), errors=0, more=[torch.ones(2)])
    pinned = batch.pin_memory()
    assert type(pinned) is Batch
    assert torch.equal(pinned["states"], batch["states"])
    assert pinned["errors"] == 0
    assert pinned["more"][0] is not batch["more"][0]


def test_what_is_pinned_already_is_not_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    batch = Batch(states=shared(torch.ones(1 << 18)))
    assert batch.pin_memory()["states"].sum() == 1 << 18
