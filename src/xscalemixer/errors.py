"""Errors: one exception lists every problem, each with found, needed and what to type."""

__all__ = ["CheckpointError", "GridError", "InputError", "SchemaError", "TimeError"]


class InputError(ValueError):
    """Something given to the library cannot be used; the message lists every problem at once.

    Parameters
    ----------
    task : str
        What could not be done, e.g. ``"this dataset cannot start 'twin-ea-small'"``.
    problems : iterable of str
        One sentence or more each: what was found, what was needed, what to type.
    """

    def __init__(self, task, problems=()):
        self.task = task
        self.problems = tuple(problems)
        super().__init__(self._message())

    def _message(self):
        if not self.problems:
            return self.task
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        lines = [f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1)]
        return "\n".join([f"{self.task} ({count})", *lines])


class SchemaError(InputError):
    """A variable, level, unit or value is missing or wrong."""


class GridError(InputError):
    """A horizontal grid is missing, unusable or in the wrong place."""


class TimeError(InputError):
    """A time axis lacks what is needed."""


class CheckpointError(InputError):
    """Weights or their description are missing, damaged or do not fit."""
