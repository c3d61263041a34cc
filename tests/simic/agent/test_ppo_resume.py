"""Learning draws from streams of its own, and goes on after a restart as if there had been none."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import torch
from tests.simic.agent.small import adam_state, equal, jumble_network, normalising_network, ppo_for, round_of, weights

from esper.leyline.config import decode, encode
from esper.simic.agent.config import PPOConfig
from esper.simic.agent.ppo import PPO

# --- going on after a restart --------------------------------------------------------------------------------------


def test_learning_draws_nothing_from_the_global_generator():
    network, other = jumble_network(), jumble_network()
    batch = round_of(network)
    before = torch.random.get_rng_state()

    ppo_for(network).learn(batch)

    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(77)
    ppo_for(other).learn(batch)
    assert equal(weights(network), weights(other))


def test_the_order_of_sequences_is_the_seeds():
    one, other = jumble_network(), jumble_network()
    batch = round_of(one, envs=9)

    ppo_for(one, seed=0).learn(batch)
    ppo_for(other, seed=1).learn(batch)

    assert not equal(weights(one), weights(other))


ROOT = Path(__file__).parents[3]


def halfway(path: Path) -> None:
    """Two updates, saved."""
    network = normalising_network()
    ppo = ppo_for(network)
    for seed in range(2):
        ppo.learn(round_of(network, seed=seed))
    torch.save({"network": network.state_dict(), "ppo": ppo.state_dict(), "config": encode(ppo.config)}, path)


def from_halfway(path: Path, target: Path) -> None:
    """Two more, from the file alone."""
    saved = torch.load(path)
    network = normalising_network()
    network.load_state_dict(saved["network"])
    ppo = PPO(network, decode(PPOConfig, saved["config"]), 0, 10, ("a", "b", "c", "d"))
    ppo.load_state_dict(saved["ppo"])
    for seed in range(2, 4):
        ppo.learn(round_of(network, seed=seed))
    torch.save({"network": network.state_dict(), "ppo": ppo.state_dict()}, target)


def test_learning_goes_on_in_another_process_as_if_it_had_never_stopped(tmp_path):
    network = normalising_network()
    ppo = ppo_for(network)
    for seed in range(4):
        ppo.learn(round_of(network, seed=seed))
    halfway(tmp_path / "half.pt")
    script = (
        "import pathlib, sys; from tests.simic.agent.test_ppo_resume import from_halfway; "
        "from_halfway(*map(pathlib.Path, sys.argv[1:]))"
    )

    subprocess.run([sys.executable, "-c", script, tmp_path / "half.pt", tmp_path / "end.pt"], check=True, cwd=ROOT)

    end = torch.load(tmp_path / "end.pt")
    assert equal(end["network"], weights(network))
    assert end["ppo"]["updates"] == 4
    assert end["ppo"]["scale"] == ppo.state_dict()["scale"]
    moments = {f"{i} {name}": value for i, each in end["ppo"]["adam"]["state"].items() for name, value in each.items()}
    assert equal(moments, adam_state(ppo))


def test_a_learner_is_saved_as_tensors_and_primitives():
    network = jumble_network()
    ppo = ppo_for(network)
    ppo.learn(round_of(network))
    file = io.BytesIO()
    torch.save(ppo.state_dict(), file)
    file.seek(0)

    assert torch.load(file, weights_only=True)["updates"] == 1
