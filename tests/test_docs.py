"""The documents say what the code does."""

import importlib.util
import re

import click
from click.testing import CliRunner
from support import ROOT

from portwatch.cli.main import portwatch
from portwatch.event import Event
from portwatch.outputs.metrics import ScrapeData, Tally, exposition
from portwatch.outputs.port_series import SeriesOptions
from portwatch.watch.counts import Counts


def test_the_readmes_table_is_what_the_engines_say_of_themselves():
    spec = importlib.util.spec_from_file_location("engines_table", ROOT / "scripts" / "engines_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    section = (ROOT / "README.md").read_text().partition("prints this table -->\n")[2]
    assert section.partition("\n<!-- /engines")[0] == script.table(), "run scripts/engines_table.py"


def test_every_field_of_an_event_is_explained():
    explained = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "events.md").read_text()))
    assert set(Event(1, 1, "open", "event").as_dict()) <= explained


def test_every_program_of_the_engine_is_in_the_source_it_is_explained_by():
    from portwatch.engines.core.engine import ITERATOR
    from portwatch.engines.core.hooks import FORKS, HOOK_SETS

    source = "".join((ROOT / "bpf" / name).read_text() for name in ("core.bpf.c", "fentry.h"))
    programs = set(re.findall(r"^int (\w+)\(", source, re.MULTILINE))
    in_sets = (
        (*one.tracing, *one.cgroup, *one.tracepoints, *one.for_failures, *one.for_ephemeral)
        for one in HOOK_SETS.values()
    )
    assert programs == {ITERATOR, *FORKS}.union(*in_sets)


def test_every_program_of_bcc_is_in_a_set_of_hooks():
    from portwatch.engines.bcc import hooks
    from portwatch.engines.bcc.engine import ITERATOR
    from portwatch.engines.core.hooks import FORKS

    source = (ROOT / "bpf" / "bcc.bpf.c").read_text()
    programs = set(re.findall(r"^int (\w+)\(", source, re.MULTILINE))
    stable = {
        *FORKS,
        *(hook.program for hook in hooks.CGROUP),
        *hooks.RAW_TRACEPOINTS,
        *hooks.TRACEPOINTS,
    }
    probes = (*hooks.KPROBES, *hooks.FAILURE_KPROBES, *hooks.MPTCP_KPROBES)
    assert programs == {*stable, *(name for one in probes for name in (one.entry, one.exit) if name), ITERATOR}


def test_every_option_of_the_daemon_is_explained():
    from portwatch.cli.commands.serve import command

    explained = (ROOT / "docs" / "serve.md").read_text()
    options = {name for one in command.params if isinstance(one, click.Option) for name in one.opts}
    assert {name for name in options if not name.startswith("--not-") and f"`{name}" not in explained} == set()


def test_the_daemons_example_of_a_file_is_good(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "serve.md").read_text(), re.DOTALL)
    (tmp_path / "portwatch.toml").write_text(example)
    result = CliRunner().invoke(portwatch, ["serve", "--check", "--config", str(tmp_path / "portwatch.toml")])
    assert (result.exit_code, result.stderr) == (0, "")


def test_every_metric_is_explained():
    tally, shown = Tally(), SeriesOptions(pid=True, folded=range(0), expected=(), most=1)
    view = ScrapeData((), shown, {"engine": "core"}, Counts(), {"kernel": 0}, 0)
    families = re.findall(r"^# TYPE (portwatch_\w+)", exposition(view, tally, "")[0].decode(), re.MULTILINE)
    explained = (ROOT / "docs" / "metrics.md").read_text()
    assert {name for name in families if f"`{name}" not in explained} == set()


def test_every_alert_is_explained():
    rules = (ROOT / "deploy" / "prometheus" / "portwatch.rules.yml").read_text()
    explained = (ROOT / "docs" / "metrics.md").read_text()
    assert {name for name in re.findall(r"alert: (\w+)", rules) if f"`{name}`" not in explained} == set()
