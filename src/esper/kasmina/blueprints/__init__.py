"""Importing this package fills the shelf."""

from esper.kasmina.blueprints import cnn as cnn
from esper.kasmina.blueprints.registry import BLUEPRINTS, Blueprint, blueprint, standard_set

__all__ = ["BLUEPRINTS", "Blueprint", "blueprint", "standard_set"]
