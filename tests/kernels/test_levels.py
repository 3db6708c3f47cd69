"""Levels of instructions: the highest that a processor offers, the one asked for, and what is refused."""

import pytest

from fastcluster_lm.errors import UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import levels

V2 = "flags : fpu cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2 avx"
V3 = V2 + " avx2 bmi1 bmi2 f16c fma abm movbe xsave avx512f"
V4 = V3 + " avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture
def machine(monkeypatch):
    def be(flags: str, kind: str = "x86_64", asked: str | None = None) -> None:
        monkeypatch.setattr(levels, "processor", lambda: flags)
        monkeypatch.setattr(levels.platform, "machine", lambda: kind)
        if asked is None:
            monkeypatch.delenv(levels.VARIABLE, raising=False)
        else:
            monkeypatch.setenv(levels.VARIABLE, asked)
        native.forget()

    yield be
    native.forget()


@pytest.mark.parametrize(
    ("flags", "kind", "expected"),
    [(V2, "x86_64", "x86-64-v2"), (V3, "x86_64", "x86-64-v3"), (V4, "x86_64", "x86-64-v4"), (V4, "aarch64", "native"),
     ("flags : fpu cx16", "x86_64", "native"), ("", "x86_64", "native")],
)  # fmt: skip
def test_unasked_it_is_the_highest_named_level_of_the_processor(machine, flags, kind, expected):
    machine(flags, kind)
    assert native.level() == expected


@pytest.mark.parametrize("asked", ["x86-64-v2", "x86-64-v3", "native"])
def test_a_level_below_the_processors_is_taken_and_so_is_its_own(machine, asked):
    machine(V3, asked=asked)
    assert native.level() == asked


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ("x86-64-v4", "x86_64", "expected one of x86-64-v2, x86-64-v3, native, got 'x86-64-v4' beyond this processor"),
        ("v3", "x86_64", "expected one of x86-64-v2, x86-64-v3, native, got 'v3'"),
        ("x86-64-v2", "aarch64", "expected one of native, got 'x86-64-v2' beyond this processor"),
    ],
)
def test_what_is_not_offered_is_refused_with_the_choices(machine, asked, kind, message):
    machine(V3, kind, asked)
    with pytest.raises(UsageError, match="FCLM_MARCH: " + message):
        native.level()


def test_where_the_system_does_not_tell_what_its_processor_offers_that_is_said(machine):
    machine("i386", asked="x86-64-v3")
    with pytest.raises(UsageError, match="expected native, got 'x86-64-v3': this system does not tell") as caught:
        native.level()
    assert "beyond" not in str(caught.value)
    machine("i386")
    assert native.level() == "native"
