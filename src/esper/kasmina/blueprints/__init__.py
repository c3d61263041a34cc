"""Importing this package fills the shelf."""

from esper.kasmina.blueprints import cnn as cnn  # isort: split

from esper.kasmina.blueprints import channels as channels
from esper.kasmina.blueprints import lora as lora
from esper.kasmina.blueprints import transformer as transformer
from esper.kasmina.blueprints.registry import BLUEPRINTS, Blueprint, blueprint, standard_set

__all__ = ["BLUEPRINTS", "Blueprint", "blueprint", "standard_set"]
