import pytest
from click.testing import CliRunner

from portwatch.cli.commands.serve import command as serve
from portwatch.cli.main import portwatch


@pytest.fixture
def check(tmp_path):
    """Return a function that runs `serve --check` with a configuration file of the given content."""

    def run(content, *arguments):
        path = tmp_path / "portwatch.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return CliRunner().invoke(portwatch, ["serve", "--check", "--config", str(path), *arguments])

    return run


EVERY_OPTION = {
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


def test_a_configuration_file_can_set_every_option(check):
    options = {name.lstrip("-") for param in serve.params for name in param.opts}
    assert set(EVERY_OPTION) == options - {"config", "check", "help"}
    result = check("\n".join(f"{name} = {value}" for name, value in EVERY_OPTION.items()))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("portwatch.toml is valid\n")


def test_a_number_is_accepted_where_text_is_expected(check):
    assert check("port = 8080").exit_code == 0


def test_the_command_line_overrides_the_configuration_file(check):
    assert check('engine = "magic"').exit_code == 2
    assert check('engine = "magic"', "--engine", "poll").exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('lisen = "127.0.0.1:1"', "unknown option 'lisen'; did you mean 'listen'?"),
        ("frobnicate = 1", "unknown option 'frobnicate'; run portwatch serve --help for the options"),
        ("config = 'x'", "unknown option 'config'"),
        ("[listen]", "listen cannot be {}"),
        ('no-failures = "yes"', "no-failures must be true or false, not 'yes'"),
        ('engine = ["core"]', "engine takes one value, not a list"),
        ("expect = [true]", "expect cannot be True"),
        ('expect = "8080"', "'8080' has no protocol: try tcp/8080 or udp/8080"),
        ('expect = "tcp/8080"\nport = 80', "tcp/8080 is expected but not watched"),
        ('expect = "udp/53"\nproto = "tcp"', "udp/53 is expected but not watched"),
        ('listen = "9935"', "'9935' is not an address"),
        ('journal-size = "big"', "'big' is not a size: try 512M or 2G"),
        ("port = 70000", "'70000' is outside 1-65535"),
        ("port = ", "is not valid TOML"),
        (f"port = {'[' * 5000}", "is nested too deeply to be read"),
        ("listen = []", "listen is empty"),
        ('listen = ["127.0.0.1:1", "127.0.0.1:1"]', "listen has the same address twice: 127.0.0.1:1"),
        ('listen = "a..b:80"', "'a..b' is not a host name"),
        (f'listen = "unix:/{"x" * 200}"', "is too long: the path of a socket file has at most 107 bytes"),
        (f'listen = "a:{"9" * 5000}"', "is not a port"),
        (f'expect = "tcp/{"9" * 5000}"', "is not a port"),
        (r'journal = "/a\u0000"', "journal cannot be '/a\\x00'"),
        ("journal-age = inf", "is not in the range"),
        ("journal-age = nan", "is not a number of seconds"),
        ("journal-age = 1e11", "is not in the range"),
        ('journal-size = "1M"', "'1M' is too small: the minimum is 8M"),
        (f'journal-size = "{"9" * 5000}"', "is not a size"),
        (b"\xff", "is not valid UTF-8 at byte 0"),
    ],
)
def test_serve_exits_with_2_and_says_what_is_wrong_in_the_configuration_file(check, content, message):
    result = check(content)
    assert result.exit_code == 2
    assert message in result.stderr


def test_serve_exits_with_2_and_names_the_configuration_file_if_it_is_missing():
    result = CliRunner().invoke(portwatch, ["serve", "--check", "--config", "/nosuch/file"])
    assert result.exit_code == 2
    assert "/nosuch/file cannot be read: No such file or directory" in result.stderr
