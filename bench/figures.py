"""A promise's figure, as it is printed."""

from dataclasses import dataclass


@dataclass
class Figure:
    """One promise's target, what was measured, and whether it is kept."""

    number: str
    promise: str
    target: str
    measured: str
    kept: bool

    def __str__(self) -> str:
        mark = "kept  " if self.kept else "MISSED"
        return f"{self.number:<4} {mark} {self.promise:<44} {self.measured:<44} ({self.target})"


Figures = list[Figure]


def within(number: str, promise: str, seconds: float, most: float) -> Figure:
    """A time that is to stay under a limit."""
    unit = f"{most * 1000:.0f} ms" if most < 1 else f"{most:.0f} s"
    return Figure(number, promise, unit, f"{seconds * 1000:.2f} ms", seconds <= most)
