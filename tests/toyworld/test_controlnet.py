"""The embedded ControlNet: it begins as the base, goes on where it was stopped, and the shipped one meets its gate."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from dreambooth.families.control import load_control
from dreambooth.generation.inputs.canny import canny
from toyworld import controlnet, world
from toyworld.editions import SECOND
from toyworld.outcome import load_judge
from toyworld.training import Budget, Plan, fit

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
SHIPPED = CHECKPOINTS / "toyworld-controlnet"
BASE = CHECKPOINTS / "toyworld-second"
MAX_MEGABYTES = 7


@pytest.fixture(scope="module")
def base():
    return controlnet.load_base(BASE)


@pytest.fixture(scope="module")
def task(base):
    return controlnet.ControlTask(base, SECOND, controlnet.build_controlnet(base.unet), batch_size=2)


def test_edges_agree_within_a_pixel_and_not_beyond():
    edges = canny(world.render(*world.sample(0)[:2]))
    shifted = {by: ImageChops.offset(edges, by, 0) for by in (1, 3)}
    nothing = Image.new("RGB", edges.size)
    assert controlnet.edge_f1(edges, edges) == controlnet.edge_f1(edges, shifted[1]) == 1
    assert controlnet.edge_f1(edges, shifted[3]) == controlnet.edge_f1(shifted[3], edges) < 0.9
    assert controlnet.edge_f1(edges, nothing) == controlnet.edge_f1(nothing, edges) == 0
    assert controlnet.edge_f1(nothing, nothing) == 1


def test_it_begins_as_a_part_of_the_base_that_adds_nothing(base, task):
    own = base.unet.state_dict()
    copied = [
        name for name, weight in task.network.state_dict().items() if torch.equal(weight, own.get(name, weight * 2))
    ]
    assert any(name.startswith("mid_block") for name in copied)
    assert {name for name in own if name.startswith("down_blocks")} <= set(copied)
    batch = controlnet.batch_of(controlnet.unseen_samples(SECOND, 2)[0])
    noisy, t, texts = torch.randn(2, 64, 8, 8), torch.tensor([10, 900]), torch.randn(2, 32, 128)
    with torch.no_grad():
        held, free = task.predict(noisy, t, texts, batch.maps_BCHW), base.unet(noisy, t, texts).sample
    assert torch.allclose(held, free, atol=1e-5)


def test_latents_that_it_learns_on_are_those_of_the_base(base, task):
    pixels = controlnet.batch_of(controlnet.unseen_samples(SECOND, 8)[0]).pixels_BCHW
    with torch.no_grad():
        latents = base.vae.encode(pixels).latent_dist.mean * base.vae.config.scaling_factor
    assert (task.codec.encode(pixels) - latents).square().mean().sqrt() < 0.1 * latents.std()


def trained(base, folder, *budgets):
    """Train in goes of so many steps in all; return the state and the network."""
    folder.mkdir()
    for steps in budgets:
        network = controlnet.build_controlnet(base.unet)
        plan = Plan("controlnet", Budget(steps=steps), 1e-3, decay_fraction=0)
        fit(network, controlnet.ControlTask(base, SECOND, network, batch_size=2), plan, folder / "controlnet.pt")
    return torch.load(folder / "controlnet.pt", weights_only=True), network


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_to_the_same_bits_and_leaves_the_base(base, tmp_path):
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    whole, network = trained(base, tmp_path / "whole", 2)
    resumed, _ = trained(base, tmp_path / "resumed", 1, 2)
    assert whole["step"] == resumed["step"] == 2
    assert all(torch.equal(weight, resumed["module"][name]) for name, weight in whole["module"].items())
    assert all(torch.equal(weight, before[name]) for name, weight in base.unet.state_dict().items())
    controlnet.save(network, tmp_path / "out")
    stored = load_control(str(tmp_path / "out"), torch.float32).state_dict()
    assert all(torch.equal(weight.half().float(), stored[name]) for name, weight in network.state_dict().items())
    assert "python -m dreambooth toyworld controlnet" in (tmp_path / "out" / "README.md").read_text()
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) / 1e6 < MAX_MEGABYTES


@pytest.mark.slow
@pytest.mark.skipif(not SHIPPED.is_dir(), reason="no ControlNet is shipped")
def test_the_shipped_one_holds_unseen_objects_to_their_edges(base):
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) / 1e6 < MAX_MEGABYTES
    judge = load_judge(BASE / "judge")
    held, free, *_ = controlnet.measure(base, SECOND, controlnet.load(SHIPPED), judge, 40)
    print(f"F1 of edges: {held.value:.3f}, without it {free.value:.3f}")
    assert held.value >= controlnet.MIN_F1 > free.value
