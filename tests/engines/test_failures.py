"""Whatever is missing, forbidden or going away: one line that says so, and never a traceback."""

import ctypes
import errno
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import PATIENCE, open_files

from portwatch.engines import perf, sock_diag_snapshot
from portwatch.engines.choice import choose
from portwatch.engines.core import engine as core
from portwatch.engines.core import libbpf
from portwatch.engines.core.engine import CoreEngine
from portwatch.engines.limits import FAILURES
from portwatch.engines.protocol import Options
from portwatch.errors import EngineUnavailable, NotPermitted
from portwatch.linux import mounts, netns, procfs
from portwatch.linux.capabilities import COUNTS_BPF_BY_CGROUP
from portwatch.linux.kernel import RELEASE
from portwatch.snapshot import owners

PORTWATCH = [sys.executable, "-m", "portwatch"]
POLL = ["--engine", "poll", "--interval", "0.05", "--netns", "self"]

NO_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
NOBODY = [*NO_RIGHTS, "--reuid=65534", "--regid=65534", "--clear-groups"]


def _core_works():
    try:
        engine = CoreEngine()
    except EngineUnavailable:
        return False
    try:
        engine.attach()
    except EngineUnavailable:
        return False
    finally:
        engine.detach()
    return True


def _can_take_rights_away():
    if os.geteuid() or not all(map(shutil.which, ("setpriv", "prlimit", "unshare"))):
        return False
    command = ["unshare", "--mount", *NO_RIGHTS, "true"]
    return not subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode


def _nobody_can_import_us():
    if not _can_take_rights_away():
        return False
    command = [*NOBODY, sys.executable, "-c", "import portwatch"]
    return not subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode


needs_root = pytest.mark.skipif(
    not _can_take_rights_away(), reason="takes rights and mounts away, which only root can (util-linux does it)"
)


@pytest.fixture(autouse=True)
def signals_are_heeded():
    """Also by the children of tests that run in the background or under nohup, which have them ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


needs_core = pytest.mark.skipif(
    os.geteuid() != 0 or not _core_works(), reason="about what happens while core starts, which it cannot here"
)
needs_object = pytest.mark.skipif(
    not core.OBJECT.exists() or not core.VMLINUX.exists(), reason="core needs BTF and its compiled object"
)
needs_nobody = pytest.mark.skipif(
    not _nobody_can_import_us(), reason="another user must be able to read this Python and its packages"
)


@pytest.fixture
def port():
    """A port that we listen on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run(*arguments, prefix=(), command=PORTWATCH, **options):
    result = subprocess.run(
        [*prefix, *command, *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )
    assert "Traceback" not in result.stderr
    return result


def in_private_mounts(setup):
    return ["unshare", "--mount", "sh", "-c", f'{setup} && exec "$@"', "sh"]


def one_line(text):
    [line] = text.splitlines()
    assert line.startswith("portwatch: ")
    return line


NO_BTF = in_private_mounts("mount -t tmpfs none /sys/kernel/btf")


@needs_root
@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        (NO_RIGHTS, "for want of CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN; run it as root (sudo portwatch)"),
        (["setpriv", "--bounding-set=-sys_admin,-bpf"], "for want of CAP_BPF; run it as root"),
        (["setpriv", "--bounding-set=-sys_admin,-perfmon"], "for want of CAP_PERFMON; run it as root"),
        (["setpriv", "--bounding-set=-sys_admin,-net_admin"], "for want of CAP_NET_ADMIN; run it as root"),
        (NO_BTF, "this kernel has no BTF (/sys/kernel/btf/vmlinux is missing)"),
    ],
    ids=["no rights", "no CAP_BPF", "no CAP_PERFMON", "no CAP_NET_ADMIN", "no BTF"],
)
@needs_object
def test_what_forbids_core_is_said_and_auto_falls_back(prefix, said, port):
    forced = run("tail", "--engine", "core", prefix=prefix)
    assert forced.returncode == 3
    assert said in one_line(forced.stderr)
    assert not forced.stdout

    fallen_back = run("list", "--netns", "self", "--port", str(port), prefix=prefix)
    assert fallen_back.returncode == 0
    if "CAP_NET_ADMIN;" not in said or "CAP_BPF" in said:  # by itself that is not needed to list
        assert said.partition(";")[0] in one_line(fallen_back.stderr)
        assert fallen_back.stderr.endswith("Using poll instead.\n")
    assert f"127.0.0.1:{port}" in fallen_back.stdout

    examined = run("doctor", prefix=prefix)
    assert examined.returncode == 0
    assert said in examined.stdout
    assert "auto takes poll: core cannot run here" in examined.stdout


@needs_nobody
@pytest.mark.parametrize("command", ["list", "doctor"])
def test_a_user_without_rights_is_served_by_poll(command):
    result = run(command, prefix=NOBODY)
    assert result.returncode == 0
    assert "poll" in (result.stderr if command == "list" else result.stdout)


@needs_nobody
def test_hidepid_shows_no_owners_and_breaks_nothing(port):
    setup = in_private_mounts("mount -t proc -o hidepid=2 proc /proc")
    result = run("list", "--netns", "self", "--port", str(port), prefix=[*setup, *NOBODY])
    assert result.returncode == 0
    assert "no process" in result.stdout.splitlines()[1]
    assert "hidepid=" in run("doctor", prefix=[*setup, *NOBODY]).stdout


@needs_core
def test_hidepid_hides_nothing_from_root(port):
    setup = in_private_mounts("mount -t proc -o hidepid=2 proc /proc")
    result = run("list", "--engine", "core", "--port", str(port), prefix=setup)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"({os.getpid()})" in result.stdout


@needs_core
def test_a_memlock_limit_of_nothing_is_no_obstacle(port):
    result = run("list", "--engine", "core", "--port", str(port), prefix=["prlimit", "--memlock=0"])
    assert (result.returncode, result.stderr) == (0, "")
    assert f"127.0.0.1:{port}" in result.stdout


@needs_core
def test_a_memlock_limit_that_cannot_be_raised_is_said_where_the_kernel_heeds_it():
    prefix = ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--memlock=65536"]
    result = run("list", "--engine", "core", prefix=prefix)
    if RELEASE < COUNTS_BPF_BY_CGROUP:
        assert result.returncode == 3
        assert "RLIMIT_MEMLOCK, which is 64 KiB and cannot be raised" in one_line(result.stderr)
    else:
        assert (result.returncode, result.stderr) == (0, "")


@needs_root
@pytest.mark.parametrize("command", ["tail", "list", "doctor"])
def test_without_proc_nothing_works_and_it_is_said(command):
    result = run(command, prefix=in_private_mounts("umount -l /proc"))
    assert result.returncode == (1 if command == "doctor" else 3)
    words = result.stdout if command == "doctor" else one_line(result.stderr)
    assert "no engine works here" in words
    assert "/proc/self" in words


def refused(build, kind=EngineUnavailable):
    with pytest.raises(kind) as caught:
        build()
    return str(caught.value)


@pytest.mark.parametrize("soname", ["libnosuch.so.1", "libc.so.6"], ids=["missing", "without what 1.0 has"])
def test_libbpf_missing_or_too_old_says_what_to_install(soname):
    said = refused(lambda: libbpf.Libbpf(soname))
    assert said.startswith("libbpf 1.0 or later is needed and ")
    assert "apt-get install libbpf1" in said


@needs_object
@pytest.mark.parametrize("content", [None, b"", b"\x7fELF and then nothing of the kind"])
def test_an_object_that_is_missing_or_broken_says_to_install_again(content, monkeypatch, tmp_path):
    path = tmp_path / "core.bpf.o"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(core, "OBJECT", path)
    said = refused(CoreEngine)
    assert str(path) in said
    assert "install portwatch again" in said


@needs_object
def test_an_object_of_another_version_says_to_install_again(monkeypatch):
    class Grown(ctypes.Structure):
        _fields_ = (("more", ctypes.c_uint64 * 100),)

        def __init__(self, *_values, **_named):
            super().__init__()

    monkeypatch.setattr(core, "_Settings", Grown)
    assert "is another version's" in refused(CoreEngine)


@needs_object
def test_programs_and_maps_that_the_object_lacks_say_to_install_again():
    opened = libbpf.Object(libbpf.Libbpf(), core.OBJECT)
    try:
        assert "is another version's" in refused(lambda: opened.attach("no_such_program"))
        assert "is another version's" in refused(lambda: opened.map_fd("no_such_map"))
    finally:
        opened.close()


@pytest.fixture
def fail(monkeypatch):
    """What is made of a failure, after what libbpf said, where no capability is missing."""
    monkeypatch.setattr(libbpf.capabilities, "missing_for_programs", list)
    monkeypatch.setattr(libbpf.capabilities, "memlock", lambda: None)
    monkeypatch.setattr(libbpf.kernel, "lockdown", lambda: "integrity")
    library = libbpf.Libbpf()

    def make(number, *said):
        library._warnings += said
        return library.failure("the kernel does not take the programs", number)

    return make


def test_eperm_with_every_capability_points_to_security_modules_and_their_like(fail):
    failure = fail(errno.EPERM)
    assert isinstance(failure, NotPermitted)
    assert "a security module or a container's seccomp profile" in str(failure)
    assert "portwatch doctor" in str(failure)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL])
def test_a_program_that_the_verifier_refuses_is_not_blamed_on_rights(number, fail):
    assert not isinstance(fail(number), NotPermitted)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EINVAL, "libbpf: prog 'listen_closed': BPF program load failed: Invalid argument"),
        (errno.EPERM, "libbpf: prog 'listen_closed': BPF program load failed: Operation not permitted"),
    ],
)
def test_confidentiality_is_named_with_how_to_boot_instead(number, said, fail, monkeypatch):
    monkeypatch.setattr(libbpf.kernel, "lockdown", lambda: "confidentiality")
    failure = fail(number, said)
    assert isinstance(failure, NotPermitted)
    assert "locked down to confidentiality" in str(failure)
    assert "boot with lockdown=integrity" in str(failure)


def test_a_limit_of_memory_that_cannot_be_raised_is_named_with_what_to_type(fail, monkeypatch):
    monkeypatch.setattr(libbpf.capabilities, "memlock", lambda: 65_536)
    failure = fail(
        errno.EPERM,
        "libbpf: Error in bpf_create_map_xattr(calls):Operation not permitted(-1). Retrying without BTF.",
        "libbpf: map 'calls': failed to create: Operation not permitted(-1)",
        "libbpf: permission error while running as root; try raising 'ulimit -l'? current value: 64.0 KiB",
    )
    assert isinstance(failure, NotPermitted)
    assert "RLIMIT_MEMLOCK, which is 64 KiB" in str(failure)
    assert "ulimit -l unlimited" in str(failure)


@needs_core
@pytest.mark.parametrize(
    ("module", "name"), [(perf, "open_tracepoint"), (mounts, "open_file_system")], ids=["perf event", "tracefs"]
)
def test_without_tracepoints_core_works_and_says_that_it_sees_no_failures(module, name, monkeypatch):
    def deny(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, name, deny)
    before = open_files()
    choice = choose("core", Options(), prove=lambda engine: engine.attach())
    assert FAILURES in choice.engine.info.limits
    choice.engine.detach()
    assert open_files() <= before


@needs_core
def test_a_tail_that_is_not_to_see_failures_says_so_if_they_were_asked_for():
    program = """
        import sys
        from portwatch.cli import main as cli
        from portwatch.linux import mounts

        def deny(*_):
            raise PermissionError(13, "Permission denied")

        mounts.open_file_system = deny
        sys.argv[1:] = ["tail", "--engine", "core", "--hooks", "stable", *sys.argv[1:]]
        cli.main()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with listening_tail(command) as tail:
        assert "binds and listens that fail are not seen here" in one_line(tail.communicate()[1])
    with listening_tail([*command, "--no-failures"]) as tail:
        assert tail.communicate()[1] == ""


@needs_core
def test_where_the_better_hooks_are_refused_the_others_serve_and_it_is_said_why(monkeypatch):
    attach = CoreEngine._attach

    def refuse(self, hooks):
        if hooks.name == "fentry":
            raise NotPermitted("fentry is forbidden here")
        return attach(self, hooks)

    monkeypatch.setattr(CoreEngine, "_attach", refuse)
    engine = CoreEngine()
    engine.attach()
    able = engine.info
    engine.detach()
    assert (able.hooks, able.why) == ("stable", "fentry: fentry is forbidden here")
    for name in ("core", "auto"):
        refused(lambda name=name: choose(name, Options(hooks="fentry"), lambda one: one.attach()), NotPermitted)


@needs_core
def test_an_engine_that_has_looked_already_looks_again_after_it_is_attached(port):
    engine = CoreEngine()
    try:
        engine.snapshot()
        engine.attach()
        assert port in {one.socket.port for one in engine.snapshot().sockets}
    finally:
        engine.detach()


@needs_core
def test_an_attachment_that_fails_leaves_nothing_open(monkeypatch):
    def fail(_self, name, **_):
        raise EngineUnavailable(f"{name} does not attach")

    monkeypatch.setattr(libbpf.Object, "attach", fail)
    before = open_files()
    refused(lambda: choose("core", Options(), prove=lambda engine: engine.attach()))
    assert open_files() <= before


@needs_core
def test_another_tools_hold_on_the_root_cgroup_is_told_from_missing_rights(monkeypatch):
    def fail(_self, name, cgroup_fd=None, **_):
        if cgroup_fd is not None:
            raise NotPermitted(f"{name} does not attach")

    monkeypatch.setattr(libbpf.Object, "attach", fail)
    said = refused(lambda: choose("core", Options(), prove=lambda engine: engine.attach()), NotPermitted)
    assert "another tool holds the root cgroup" in said


@pytest.mark.parametrize(
    ("inode", "said"), [(None, "no cgroup v2"), (4711, "--cgroupns=host")], ids=["absent", "private namespace"]
)
def test_a_cgroup_root_that_cannot_be_reached_says_why(inode, said, monkeypatch, tmp_path):
    found = [] if inode is None else [tmp_path]
    monkeypatch.setattr(mounts, "_cgroup_directories", lambda: (os.open(path, os.O_RDONLY) for path in found))
    assert said in refused(mounts.open_cgroup_root)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), PermissionError(1, "no")])
def test_whatever_the_system_refuses_an_engine_is_unavailable(error):
    def fail(_):
        raise error

    kind = NotPermitted if isinstance(error, PermissionError) else EngineUnavailable
    assert "portwatch doctor" in refused(lambda: choose("poll", Options(), prove=fail), kind)


def test_sock_diag_that_does_not_answer_says_what_to_load(monkeypatch):
    def fail(_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(sock_diag_snapshot.sock_diag, "open_sockets", fail)
    said = refused(lambda: choose("poll", Options(), prove=lambda engine: engine.snapshot()))
    assert "modprobe inet_diag" in said


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError, PermissionError])
@pytest.mark.usefixtures("port")
def test_a_process_that_vanishes_between_two_reads_is_passed_over(error, monkeypatch):
    read, namespace = procfs.read, procfs.namespace

    def read_others_never(pid, name):
        if name == "status":
            raise error
        return read(pid, name)

    def namespace_of_us_only(pid, kind):
        if isinstance(pid, int):
            raise error
        return namespace(pid, kind)

    inodes = set(procfs.socket_inodes(os.getpid()))
    assert owners.holders_of(inodes)
    monkeypatch.setattr(procfs, "read", read_others_never)
    monkeypatch.setattr(procfs, "namespace", namespace_of_us_only)
    assert owners.holders_of(inodes) == {}
    assert netns.own().inode in {one.inode for one in netns.all_namespaces()}


def start_tail(port, prefix=(), **options):
    return subprocess.Popen(
        [*prefix, *PORTWATCH, "tail", *POLL, "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ends_cleanly(tail):
    _, errors = tail.communicate(timeout=PATIENCE)
    return (tail.returncode, errors) == (0, "")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_a_tail_cleanly(ending, times, port):
    with start_tail(port) as tail:
        assert str(port) in tail.stdout.readline()
        for _ in range(times):
            tail.send_signal(ending)
        assert ends_cleanly(tail)


NAMED = """
import socket, sys
open("/proc/self/comm", "w", encoding="utf-8").write("café☃")
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_a_name_that_the_terminal_cannot_show_is_shown_escaped():
    with subprocess.Popen(
        [sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as named:
        port = named.stdout.readline().strip()
        with start_tail(port, env={**os.environ, "PYTHONIOENCODING": "ascii"}) as tail:
            assert rf"caf\xe9\u2603 ({named.pid})" in tail.stdout.readline()
            tail.terminate()
            assert ends_cleanly(tail)
        named.stdin.close()


@contextmanager
def listening_tail(command):
    """A tail that has told its first line, and is then ended."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(
            [*command, "--port", str(server.getsockname()[1])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as tail,
    ):
        assert tail.stdout.readline()
        tail.terminate()
        yield tail


EARLY = {
    "before its module is imported": "replace(cli._Commands, 'get_command')",
    "while the engine is chosen": "replace(hub, 'choose')",
    "while the snapshot is taken": "replace(Subscription, 'get')",
}


def tail_that_is_hit(patch, engine):
    """A tail that gets SIGINT at a certain moment, from itself."""
    program = f"""
        import os, signal, sys
        from portwatch.cli import main as cli
        from portwatch.engines.core import libbpf
        from portwatch.watch import hub
        from portwatch.watch.subscription import Subscription

        def hit():
            os.kill(os.getpid(), signal.SIGINT)

        def replace(owner, name):
            original = getattr(owner, name)
            setattr(owner, name, lambda *args, **named: (hit(), original(*args, **named))[1])

        {patch}
        sys.argv[1:] = ["tail", "--engine", "{engine}"]
        cli.main()
    """
    return [sys.executable, "-c", textwrap.dedent(program)]


@pytest.mark.parametrize("patch", EARLY.values(), ids=EARLY)
def test_a_signal_while_it_starts_ends_a_tail_cleanly(patch):
    result = run(command=tail_that_is_hit(patch, "poll"))
    assert (result.returncode, result.stderr) == (0, "")


@needs_core
def test_a_signal_while_libbpf_calls_back_ends_a_tail_cleanly():
    patch = (
        "make = libbpf._PrintFunction; "
        "libbpf._PrintFunction = lambda keep: make(lambda *args: (hit(), keep(*args))[1])"
    )
    result = run(command=tail_that_is_hit(patch, "core"))
    assert (result.returncode, result.stderr) == (0, "")


def test_a_signal_ends_a_list_without_a_word_and_is_no_success():
    command = [
        part.replace('"tail"', '"list"')
        for part in tail_that_is_hit("replace(cli._Commands, 'get_command')", "poll")
    ]
    result = run(command=command)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_what_nohup_ignores_stays_ignored(port):
    with start_tail(port, prefix=["nohup"]) as tail:
        tail.stdout.readline()
        tail.send_signal(signal.SIGHUP)
        with socket.create_server(("127.0.0.2", port)):
            assert str(port) in tail.stdout.readline()
        tail.terminate()
        assert ends_cleanly(tail)


def test_a_closed_pipe_ends_a_tail_though_nothing_more_is_written(port):
    with start_tail(port) as tail:
        tail.stdout.readline()
        tail.stdout.close()
        tail.stdout = None
        assert ends_cleanly(tail)


def test_a_terminal_that_goes_away_ends_a_tail(port):
    ours, its = pty.openpty()
    with start_tail(port, stdout=its, env={**os.environ, "TERM": "xterm"}) as tail:
        os.close(its)
        assert select.select([ours], [], [], PATIENCE)[0]
        assert str(port).encode() in os.read(ours, 4096)
        os.close(ours)
        assert ends_cleanly(tail)


@pytest.mark.parametrize("command", ["tail", "list", "doctor"])
def test_a_full_disk_is_said(command, port):
    options = [] if command == "doctor" else ["--engine", "poll", "--netns", "self", "--port", str(port)]
    with Path("/dev/full").open("w") as full:
        result = run(command, *options, stdout=full)
    assert result.returncode == 1
    assert "No space left on device" in one_line(result.stderr)


@pytest.mark.parametrize("command", ["tail", "list", "doctor"])
def test_a_closed_standard_output_is_said(command):
    result = run(command, prefix=["sh", "-c", 'exec "$@" >&-', "sh"])
    assert result.returncode == 2
    assert "standard output is closed" in one_line(result.stderr)
