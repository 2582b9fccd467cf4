"""A column of a table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

__all__ = ["Column"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, Arrow type, unit and meaning."""

    name: str
    arrow: str
    unit: str
    meaning: str

    def of(self, **values: str) -> Column:
        """Return the column with its placeholders, such as ``{of}``, filled in."""
        texts = (self.name, self.unit, self.meaning)
        name, unit, meaning = (text.format(**values) for text in texts)
        return dataclasses.replace(self, name=name, unit=unit, meaning=meaning)
