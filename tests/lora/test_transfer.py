import torch

from lora_pl.data.batches import TokenDataset
from lora_pl.lora.transfer import transfer
from tests.data.test_batches import make_tokens


def test_to_a_gpu_from_pinned_memory_without_waiting(monkeypatch):
    done = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: done.append("pinned") or x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *to, **how: done.append((*to, how)) or x)
    transfer(torch.zeros(2), "cuda:0")
    assert done == ["pinned", ("cuda:0", {"non_blocking": True})]


def test_a_copy_back_is_waited_for(monkeypatch):
    class OnGPU:
        device = torch.device("cuda")

        def to(self, device, **how):
            return device, how

    assert transfer(OnGPU(), "cpu") == ("cpu", {})
    assert transfer(OnGPU(), "cuda") == ("cuda", {})


def test_all_tensors_of_a_batch(monkeypatch):
    batch = TokenDataset(make_tokens([3, 4]), "padded", 0)[[0, 1]]
    moved = batch.to("meta")
    assert {x.device.type for x in vars(moved).values() if isinstance(x, torch.Tensor)} == {"meta"}
    assert moved.lengths == batch.lengths
