"""Memory of batches: rows are copied, and used again only when nobody sees them."""

import gc

import pytest
import torch

from spurbench.config import InputConfig
from spurbench.data import memory
from spurbench.data.memory import gather
from spurbench.data.transforms import evaluation_images

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_frames(batch, side, seed=0):
    return torch.randint(
        0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_gather_copies_rows():
    rows = random_frames(10, 8)
    index = torch.tensor([7, 0, 7])
    gathered = gather(rows, index, CPU)
    assert torch.equal(gathered, rows[index])
    gathered.zero_()
    assert rows[7].any()
    assert gather(rows, torch.empty(0, dtype=torch.int64), CPU).shape == (0, 8, 8, 3)


@pytest.fixture
def no_unused_memory():
    memory._unused.clear()
    yield
    memory._unused.clear()


@pytest.mark.usefixtures("no_unused_memory")
def test_memory_is_used_again_when_nothing_refers_to_it():
    rows = torch.arange(4, dtype=torch.uint8)[:, None].expand(4, 2**20).contiguous()
    first = gather(rows, torch.tensor([1, 1]), CPU)
    address = first.data_ptr()
    second = gather(rows, torch.tensor([2, 2]), CPU)
    assert second.data_ptr() != address
    view = first[1]
    del first
    gather(rows, torch.tensor([3, 3]), CPU)
    assert (view == 1).all()
    del view
    gc.collect()
    assert address in {block.data_ptr() for block in memory._unused.values()}


@pytest.mark.usefixtures("no_unused_memory")
def test_memory_saved_for_backward_is_not_used_again():
    config = InputConfig(resize=64, image_size=64, crop_scale=None, flip=False)
    frames = random_frames(64, 64)
    weight = torch.ones((), requires_grad=True)
    images = evaluation_images(frames, config, MEAN, STD)
    total = images.double().sum()
    loss = (images * weight).sum()
    del images
    for seed in range(3):
        evaluation_images(random_frames(64, 64, seed + 1), config, MEAN, STD)
    loss.backward()
    torch.testing.assert_close(weight.grad.double(), total, rtol=1e-3, atol=1)


@pytest.mark.usefixtures("no_unused_memory")
def test_little_unused_memory_is_kept(monkeypatch):
    monkeypatch.setattr(memory, "RECYCLED_LIMIT", 5 << 20)
    blocks = [memory.empty((2 << 20,), torch.uint8, CPU) for _ in range(4)]
    del blocks
    assert sum(block.numel() for block in memory._unused.values()) == 4 << 20
