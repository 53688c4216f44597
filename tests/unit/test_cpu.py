"""What is read from the system's description of the processor."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from app import cpu

ZEN_4 = "fpu sse4_2 avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_bf16 avx512_vnni"
SKYLAKE = "fpu sse4_2 avx2 avx512f avx512dq avx512cd avx512bw avx512vl"


def described(folder: Path, flags: str) -> Path:
    info = folder / "cpuinfo"
    info.write_text(
        f"processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: {flags}\n\nprocessor\t: 1\nmodel name\t: Another\n"
    )
    return info


def test_the_name_is_what_the_system_calls_the_first_core(tmp_path: Path) -> None:
    assert cpu.name(described(tmp_path, ZEN_4)) == "Some CPU @ 2 GHz"


def test_without_a_description_the_platform_names_the_processor_and_no_wide_vectors_are_used(tmp_path: Path) -> None:
    assert cpu.name(tmp_path / "none") == (platform.processor() or platform.machine())
    assert not cpu.wide_vectors(tmp_path / "none")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(ZEN_4, True), (SKYLAKE, False), ("fp asimd", False), ("", False)]
    + [(ZEN_4.replace(f" {flag}", "", 1), False) for flag in ("avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl")],
)
def test_wide_vectors_are_used_only_where_all_they_need_is_there_and_they_do_not_lower_the_clock(
    tmp_path: Path, flags: str, expected: bool
) -> None:
    assert cpu.wide_vectors(described(tmp_path, flags)) is expected


@pytest.mark.parametrize(
    ("flags", "expected"), [(ZEN_4, True), (SKYLAKE, False), ("avx2 avx_vnni", True), ("fp asimd", False), ("", False)]
)
def test_int8_products_need_instructions_of_their_own(tmp_path: Path, flags: str, expected: bool) -> None:
    assert cpu.multiplies_int8(described(tmp_path, flags)) is expected


@pytest.mark.parametrize(
    ("flags", "given", "expected"),
    [
        (ZEN_4, {}, {"CT2_FORCE_CPU_ISA": "AVX512"}),
        (ZEN_4, {"CT2_FORCE_CPU_ISA": "AVX2"}, {"CT2_FORCE_CPU_ISA": "AVX2"}),
        (SKYLAKE, {}, {}),
        (SKYLAKE, {"CT2_FORCE_CPU_ISA": "AVX512"}, {"CT2_FORCE_CPU_ISA": "AVX512"}),
    ],
)
def test_ctranslate2_is_told_of_wide_vectors_unless_the_operator_has_said_what_it_shall_use(
    tmp_path: Path, flags: str, given: dict[str, str], expected: dict[str, str]
) -> None:
    cpu.advise(given, described(tmp_path, flags))
    assert given == expected
