import pytest
import torch
from torch import nn

from hardwon.training import checkpoint


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    made[0].bias.requires_grad_(False)
    return made, torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=0.1)


def learned(module):
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def update(module, optimizer, steps=3):
    for _ in range(steps):
        module(torch.rand(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_brings_back_weights_optimizer_and_generator(network, tmp_path):
    module, optimizer = network
    update(module, optimizer)
    checkpoint.save(tmp_path, 3, learned(module), optimizer)
    update(module, optimizer)
    truth = {name: value.clone() for name, value in module.state_dict().items()}
    assert checkpoint.restore(tmp_path, learned(module), optimizer) == (3, [])
    update(module, optimizer)
    assert all(torch.equal(value, truth[name]) for name, value in module.state_dict().items())


def test_before_the_first_update(network, tmp_path):
    module, optimizer = network
    checkpoint.save(tmp_path, 0, learned(module), optimizer)
    update(module, optimizer)
    truth = {name: value.clone() for name, value in module.state_dict().items()}
    assert checkpoint.restore(tmp_path, learned(module), optimizer) == (0, [])
    assert not optimizer.state
    update(module, optimizer)
    assert all(torch.equal(value, truth[name]) for name, value in module.state_dict().items())


def test_frozen_parameters_are_not_written(network, tmp_path):
    from safetensors.torch import load_file

    module, optimizer = network
    update(module, optimizer, steps=1)
    checkpoint.save(tmp_path, 1, learned(module), optimizer)
    names = set(load_file(tmp_path / "step-0000001" / "state.safetensors"))
    assert "weight.0.weight" in names
    assert "weight.0.bias" not in names
    assert {"optimizer.exp_avg.2.bias", "optimizer.exp_avg_sq.2.bias", "optimizer.step.2.bias", "generator"} <= names


def test_only_the_newest_are_kept(network, tmp_path):
    for step in (1, 9, 10, 200):
        checkpoint.save(tmp_path, step, learned(network[0]), network[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000010", "step-0000200"]
    assert checkpoint.restore(tmp_path, learned(network[0]), network[1])[0] == 200


def test_nothing_there(network, tmp_path):
    before = {name: value.clone() for name, value in network[0].state_dict().items()}
    assert checkpoint.restore(tmp_path / "missing", learned(network[0]), network[1]) == (0, [])
    assert all(torch.equal(value, before[name]) for name, value in network[0].state_dict().items())


def test_what_is_wrong_is_told(network, tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, learned(network[0]), network[1])
    (tmp_path / "step-0000002" / "state.safetensors").write_bytes(b"noise")
    step, problems = checkpoint.restore(tmp_path, learned(network[0]), network[1])
    assert step == 1
    (problem,) = problems
    assert "step-0000002" in problem
    assert "has changed since it was written" in problem
