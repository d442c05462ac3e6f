"""Pieces of diagnosis on recorded text and on small source files."""

from __future__ import annotations

import textwrap

from resin.diagnose.accounting import Holdings, difference
from resin.diagnose.mappings import growth, parse_smaps
from resin.diagnose.memray_attach import _suspects
from resin.diagnose.peers import Peers, compare
from resin.diagnose.remote import usable
from resin.diagnose.source import function_at, growth_sites, is_library
from resin.diagnose.target import Target

SMAPS = """\
55a000000000-55a000100000 rw-p 00000000 00:00 0                          [heap]
Size:               1024 kB
Rss:                {heap} kB
Private_Dirty:        {heap} kB
Swap:                  0 kB
VmFlags: rd wr mr mw me ac
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
Rss:                 132 kB
Private_Dirty:       132 kB
Swap:                  4 kB
7f1000001000-7f1000201000 rw-p 00000000 00:00 0
Rss:                2048 kB
7f2000000000-7f2000100000 r--p 00000000 08:01 1234                       /data/weights with space.bin
Rss:                {file} kB
7f3000000000-7f3000100000 rw-s 00000000 00:1a 77                         /dev/shm/torch_1 (deleted)
Rss:                1024 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  12 kB
"""


def test_smaps_are_read_and_told_apart():
    found = parse_smaps(SMAPS.format(heap=512, file=64).splitlines())
    assert [m.kind for m in found] == ["heap", "arena", "anon", "file", "shm", "stack"]
    assert found[1].rss_bytes == 132 * 1024
    assert found[1].swap_bytes == 4096
    assert found[3].label == "/data/weights with space.bin"


def test_growth_names_what_grew():
    before = parse_smaps(SMAPS.format(heap=512, file=64).splitlines())
    after = parse_smaps(SMAPS.format(heap=1024, file=80).splitlines())
    found = growth(before, after)
    assert found.by_label[0] == ("heap", 512 * 1024)
    assert found.by_kind == {"heap": 512 * 1024, "file": 16 * 1024}
    assert found.total_bytes == 528 * 1024


def test_difference_of_holdings():
    before = Holdings({"socket": 3, "/tmp/log": 1}, 4, 1, 1000, 2)
    after = Holdings({"socket": 9, "/tmp/log": 1}, 4, 2, 5000, 3)
    assert difference(before, after) == {
        "children": 1,
        "dev_shm_bytes": 4000,
        "dev_shm_files": 1,
        "fds": 6,
        "fds of socket": 6,
    }
    assert difference(Holdings(None, None, 0, 0, 0), after) == {
        "children": 2,
        "dev_shm_bytes": 5000,
        "dev_shm_files": 3,
    }


SOURCE = textwrap.dedent(
    """\
    import collections

    cache = {}
    recent = collections.deque(maxlen=10)
    drained = []

    class Service:
        def __init__(self):
            self.seen = []

        def handle(self, request):
            self.seen.append(request)
            local = []
            local.append(request)
            drained.append(request)

            def inner():
                cache[request] = 1
            inner()

    def drain():
        drained.clear()

    cache["warm"] = 1
    """
)


def test_containers_that_only_grow(tmp_path):
    path = tmp_path / "service.py"
    path.write_text(SOURCE)
    found = {(s.line, s.container, s.function) for s in growth_sites([str(path)])}
    assert found == {(12, "self.seen", "handle"), (18, "cache", "inner")}
    assert growth_sites([str(tmp_path / "none.py")]) == []


def test_function_at(tmp_path):
    path = tmp_path / "service.py"
    path.write_text(SOURCE)
    assert function_at(str(path), 12) == "handle"
    assert function_at(str(path), 18) == "inner"
    assert function_at(str(path), 3) == "<module>"
    assert function_at("/nowhere.py", 3) == "?"


def test_library_and_user_code():
    assert is_library("/venv/lib/python3.11/site-packages/torch/nn.py")
    assert is_library("/usr/lib/python3.11/threading.py")
    assert is_library("<string>")
    assert not is_library("/srv/app/train.py")


def test_remote_exec_says_why_it_cannot():
    old = Target(1, "/usr/bin/python3.11", (), (3, 11), True)
    assert "needs 3.14" in usable(old)
    assert usable(Target(1, "/bin/cat", (), None, True)) == "not a Python process"


def test_memray_table():
    text = (
        "allocator,num_allocations,size,tid,thread_name,stack_trace\n"
        'malloc,3,3000,1,main,"empty;/venv/lib/python3.11/site-packages/numpy/core.py;9|step;/srv/train.py;12|main;/srv/train.py;40"\n'
        'malloc,1,1000,1,main,"load;/srv/data.py;7"\n'
    )
    found = _suspects(text)
    assert [(s.file, s.line, s.function, s.growth_bytes) for s in found] == [
        ("/srv/train.py", 12, "step", 3000.0),
        ("/srv/data.py", 7, "load", 1000.0),
    ]
    assert found[0].share == 0.75


def test_peers_tell_code_from_data():
    mib = 1 << 20
    before = Peers({1: 100 * mib, 2: 100 * mib, 3: 100 * mib, 9: 5})
    alike = Peers({1: 110 * mib, 2: 111 * mib, 3: 109 * mib})
    assert "look at the code" in compare(before, alike, 10 * mib)
    assert "look at its data" in compare(before, before, 10 * mib)
    assert "1 of them" in compare(before, Peers({1: 110 * mib, 2: 100 * mib, 3: 100 * mib}), 10 * mib)
    assert compare(Peers({}), Peers({}), 10 * mib) is None
    assert compare(before, alike, 1000) is None
