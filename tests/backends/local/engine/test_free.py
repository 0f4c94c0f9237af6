"""How much memory is free."""

from backends.local.engine.free import free_bytes

MEMINFO = "MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:   4000 kB\n"


def test_it_is_what_the_machine_has_left(tmp_path):
    """Memory that only caches files counts as free."""
    (tmp_path / "meminfo").write_text(MEMINFO)

    assert free_bytes(tmp_path / "meminfo", tmp_path / "no-cgroup") == 4_096_000


def test_a_container_may_have_less(tmp_path):
    """Unless it has no limit."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.current").write_text("1000\n")
    found = []
    for limit in ("3000\n", "max\n", "500\n"):
        (tmp_path / "memory.max").write_text(limit)
        found.append(free_bytes(tmp_path / "meminfo", tmp_path))

    assert found == [2000, 4_096_000, 0]


def test_a_system_that_does_not_tell_has_half_of_its_memory_free(tmp_path):
    assert free_bytes(tmp_path / "meminfo", tmp_path) > 0
    assert free_bytes() > 0
