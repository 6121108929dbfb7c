import pytest
from click.testing import CliRunner

from portwatch.cli.commands.serve import command as serve
from portwatch.cli.main import portwatch


@pytest.fixture
def check(tmp_path):
    """What serve --check says of a file's content."""

    def run(content, *more):
        path = tmp_path / "portwatch.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return CliRunner().invoke(portwatch, ["serve", "--check", "--config", str(path), *more])

    return run


SAID = {
    "listen": '["127.0.0.1:9935", "unix:/run/portwatch.sock"]',
    "journal": '"/var/lib/portwatch/journal"',
    "journal-age": "3600",
    "journal-size": '"64M"',
    "expect": '["tcp/8080", "udp/80"]',
    "log": '"json"',
    "host": '["portwatch.example"]',
    "pid": "1",
    "not-pid": "[1]",
    "no-failures": "true",
    "metrics-pid": "true",
    "metrics-ephemeral": "true",
    "metrics-max-series": "500",
    "port": '"80,8000-8999"',
    "proto": '["tcp", "udp"]',
    "exposure": '"all"',
    "process": '["node*", "python*"]',
    "cgroup": '"/"',
    "container": "[]",
    "netns": '"self"',
    "not-port": "81",
    "not-proto": "[]",
    "not-exposure": '"loopback"',
    "not-process": '"x"',
    "not-cgroup": "[]",
    "not-container": "[]",
    "not-netns": "[]",
    "engine": '"core"',
    "ephemeral": "true",
    "interval": "0.5",
    "procfs": '"/proc"',
}


def test_a_file_can_say_all_that_the_options_can(check):
    options = {name.lstrip("-") for one in serve.params for name in one.opts}
    assert set(SAID) == options - {"config", "check", "help"}
    result = check("\n".join(f"{name} = {value}" for name, value in SAID.items()))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("portwatch.toml is good\n")


def test_a_number_serves_where_a_text_is_meant(check):
    assert check("port = 8080").exit_code == 0


def test_an_option_goes_before_the_file(check):
    assert check('engine = "magic"').exit_code == 2
    assert check('engine = "magic"', "--engine", "poll").exit_code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('lisen = "127.0.0.1:1"', "there is no 'lisen'; did you mean 'listen'?"),
        ("frobnicate = 1", "there is no 'frobnicate'; portwatch serve --help shows what there is"),
        ("config = 'x'", "there is no 'config'"),
        ("[listen]", "listen cannot be {}"),
        ('no-failures = "yes"', "no-failures is true or false, not 'yes'"),
        ('engine = ["core"]', "engine is one value, not a list"),
        ("expect = [true]", "expect cannot be True"),
        ('expect = "8080"', "'8080' is no port of a protocol: try tcp/8080"),
        ('expect = "tcp/8080"\nport = 80', "tcp/8080 is expected, and outside of what is watched"),
        ('expect = "udp/53"\nproto = "tcp"', "udp/53 is expected, and outside of what is watched"),
        ('listen = "9935"', "'9935' is no address"),
        ('journal-size = "big"', "'big' is no size: try 512M or 2G"),
        ("port = 70000", "'70000' is outside 1-65535"),
        ("port = ", "is not TOML"),
        (f"port = {'[' * 5000}", "is nested too deeply to be read"),
        ("listen = []", "listen is empty"),
        ('listen = ["127.0.0.1:1", "127.0.0.1:1"]', "one address is given twice"),
        ('listen = "a..b:80"', "'a..b' is no name of a host"),
        (f'listen = "unix:/{"x" * 200}"', "is longer than the 107 bytes"),
        (f'listen = "a:{"9" * 5000}"', "is no port"),
        (f'expect = "tcp/{"9" * 5000}"', "is no port of a protocol"),
        (r'journal = "/a\u0000"', "journal cannot be '/a\\x00'"),
        ("journal-age = inf", "is not in the range"),
        ("journal-age = nan", "is no number of seconds"),
        ("journal-age = 1e11", "is not in the range"),
        ('journal-size = "1M"', "'1M' holds too little: 8M is the least"),
        (f'journal-size = "{"9" * 5000}"', "is no size"),
        (b"\xff", "is not UTF-8, at byte 0"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(check, content, said):
    result = check(content)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_file_that_is_not_there_is_said():
    result = CliRunner().invoke(portwatch, ["serve", "--check", "--config", "/nosuch/file"])
    assert result.exit_code == 2
    assert "/nosuch/file cannot be read: No such file or directory" in result.stderr
