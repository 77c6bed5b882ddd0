from collections.abc import Callable
from pathlib import Path

import pytest

from cedilla.errors import InputError
from cedilla.methylation.check import check


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Writes a text, and gives the path of the file."""

    def write(text: str, name: str = "calls.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return write


@pytest.fixture
def errors_of() -> Callable[..., list[str]]:
    """The errors that `check` finds in a file, without its path, which all must start with."""

    def find(path: Path, **said) -> list[str]:
        with pytest.raises(InputError) as caught:
            check(path, **said)
        problems = caught.value.problems
        assert all(problem.where.startswith(str(path)) for problem in problems)
        assert all(problem.mend or "more" in problem.what for problem in problems)
        return [str(problem).removeprefix(str(path)).strip(" :") for problem in problems]

    return find


@pytest.fixture
def remarks_of() -> Callable[..., str]:
    """What `check` says of a file that is fit for use, at one severity."""

    def find(path: Path, severity: str, **said) -> str:
        return "\n".join(p.what for p in check(path, **said) if p.severity == severity)

    return find
