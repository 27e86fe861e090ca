"""Names and colours of label values, in the words of the programs that show masks.

- A NIfTI header extension with the code 30 (Caret) whose XML holds a ``LabelTable``, as Connectome
  Workbench reads it; it travels with the file.
- A label description file of ITK-SNAP, which 3D Slicer and others read too.
"""

import colorsys
from collections.abc import Mapping
from xml.etree import ElementTree

CARET_CODE = 30
"""``NIFTI_ECODE_CARET`` in the registry of NIfTI header extensions."""

_TURN = 0.618034
"""Of the wheel of hues, from one class to the next: neighbours differ, and hues fill evenly."""


def colour(number: int) -> tuple[int, int, int]:
    """Red, green and blue from 0 to 255 of the n-th class; the background, 0, is black."""
    if number == 0:
        return (0, 0, 0)
    # Every third class is lighter, every other third darker.
    saturation, value = ((0.75, 0.95), (0.55, 1.0), (0.9, 0.7))[number % 3]
    red, green, blue = colorsys.hsv_to_rgb((number * _TURN) % 1, saturation, value)
    return (round(255 * red), round(255 * green), round(255 * blue))


def caret_extension(classes: Mapping[int, str]) -> bytes:
    """The XML of a header extension that names label values; the same classes, the same bytes."""
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for number, (value, name) in enumerate(classes.items()):
        red, green, blue = (f"{part / 255:.4f}" for part in colour(number))
        shown = {"Red": red, "Green": green, "Blue": blue, "Alpha": "1" if value else "0"}
        ElementTree.SubElement(table, "Label", {"Key": str(value), **shown}).text = name
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)


def itksnap_labels(classes: Mapping[int, str]) -> str:
    """A label description file: value, colour, opacity, visibility in slices and in 3D, name."""
    lines = ["# IDX R G B A VIS MSH LABEL"]
    for number, (value, name) in enumerate(classes.items()):
        red, green, blue = colour(number)
        seen = int(value != 0)
        plain = name.replace('"', "'")
        lines.append(f'{value} {red} {green} {blue} {seen} {seen} {seen} "{plain}"')
    return "\n".join(lines) + "\n"
