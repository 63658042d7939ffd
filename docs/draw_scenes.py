"""Draws the figures of docs/scenes.md: ``python docs/draw_scenes.py``."""

from pathlib import Path

from matplotlib.figure import Figure

from amd_plugin.randomness import generator
from amd_plugin.tasks.scenes.task import Scenes


def main() -> None:
    """Writes the picture of real scenes, as judge B sees them."""
    task = Scenes()
    labels = task.balanced_labels(720)
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    task.drawing(task.pictures(labels, generator(0, "figure")), labels)(figure.subplots(), 0)
    figure.savefig(Path(__file__).parent / "images" / "scenes_real.png", dpi=110)


if __name__ == "__main__":
    main()
