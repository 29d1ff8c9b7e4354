"""The images of the studio, as far as their files tell."""

from pathlib import Path

import pytest
import yaml

DOCKER = Path(__file__).parents[1] / "docker"


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_what_a_volume_is_mounted_on_is_there_and_belongs_to_the_user(name: str) -> None:
    """Docker makes a folder that an image lacks root's, and the studio could not write there."""
    before_user = (DOCKER / name).read_text().partition("\nUSER ")[0]
    made = before_user.partition("mkdir --parents ")[2].splitlines()[0].split()
    owned = before_user.partition("chown --recursive studio ")[2].splitlines()[0].split()
    for volume in yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["cpu"]["volumes"]:
        place = volume.partition(":")[2]
        assert any(Path(folder).is_relative_to(place) for folder in made), place
        assert any(Path(place).is_relative_to(folder) for folder in owned), place
