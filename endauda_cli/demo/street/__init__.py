"""Street world: generated street scenes seen from a car, painted in a source look and in a target look.

A scene is drawn once as geometry (:func:`draw_scene`) and painted in any look (:func:`paint`); both are pure
functions of their random generator. A look gives every class a material with three properties: colour (hue
and saturation), light (brightness) and texture. :func:`shifted` moves each class in one of them, towards the
appearance that another class has in the source. Numpy and Pillow only.

Shapes: ``H`` rows, ``W`` columns, ``N`` objects, ``P`` pixels of one class. Lengths of the world are metres:
x to the right and z ahead of the camera, y above the ground.
"""

from __future__ import annotations

from endauda_cli.demo.street.looks import SOURCE_LOOK, TARGET_LOOK, Look, shifted, translated
from endauda_cli.demo.street.painting import paint
from endauda_cli.demo.street.scene import Scene, draw_scene

__all__ = ["SOURCE_LOOK", "TARGET_LOOK", "Look", "Scene", "draw_scene", "paint", "shifted", "translated"]
