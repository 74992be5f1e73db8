"""Tensors between the host and a device."""

import torch

from kpops.transfers import beside, on_device, on_host


def test_parts_come_to_the_host_as_they_are(device):
    parts = (
        torch.randn(2, 3, dtype=torch.float64, device=device),
        torch.randn(4, device=device),
        torch.tensor(7, device=device),
        torch.tensor([True, False], device=device),
        torch.zeros(0, 5),
    )
    for there, here in zip(parts, on_host(*parts), strict=True):
        assert here.device.type == "cpu"
        assert here.dtype == there.dtype
        assert torch.equal(here, there.cpu())


def test_a_tensor_goes_to_a_device_and_dtype(device):
    host = torch.randn(3, 1000, dtype=torch.float64).mT
    there = on_device(host, device, torch.float32)
    assert there.device == device
    assert torch.equal(there.cpu(), host.float())
    assert torch.equal(beside(torch.tensor([1, -1]), there).cpu(), torch.tensor([1.0, -1.0]))


def test_nothing_is_copied_on_one_device_and_in_one_dtype():
    host = torch.randn(3)
    assert on_device(host, host.device, host.dtype) is host
    assert on_host(host)[0] is host
