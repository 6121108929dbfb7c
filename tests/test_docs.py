"""The documents agree with the code."""

import re

import click
import engines_table
import pytest
import samples
from click.testing import CliRunner
from support import ROOT

from portwatch.cli.main import COMMANDS, portwatch
from portwatch.event import Event
from portwatch.outputs.metrics import ScrapeData, Tally, exposition
from portwatch.outputs.port_series import SeriesOptions
from portwatch.watch.counts import Counts

DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *samples.documents()]
SAMPLE_BLOCKS = [
    pytest.param(name, block, id=f"{path.name}-{name}")
    for path in samples.documents()
    for name, block in samples.blocks(path.read_text())
]


def long_options(command):
    """Return the long names of a command's options, without the `--not-` forms."""
    names = {name for param in command.params if isinstance(param, click.Option) for name in param.opts}
    return {name for name in names if name.startswith("--") and not name.startswith("--not-")}


@pytest.mark.parametrize(("name", "block"), SAMPLE_BLOCKS)
def test_a_sample_in_a_document_is_what_the_program_prints(name, block):
    assert block == samples.sample(name), "run scripts/samples.py to update it"


def test_every_sample_is_shown_in_a_document():
    assert set(samples.SAMPLES) == {param.values[0] for param in SAMPLE_BLOCKS}


def test_samples_do_not_depend_on_the_time_zone_of_the_machine(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert "05:34:39.343" in samples.sample("tail")


def test_the_table_of_limits_is_what_the_engines_declare():
    table = engines_table.DOCUMENT.read_text().partition(engines_table.BEGIN)[2]
    assert table.partition(engines_table.END)[0] == engines_table.table(), (
        "run scripts/engines_table.py to update it"
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_target_of_every_link_in_a_document_exists(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked.read_text()), f"{path.name} links to {target}"


def anchors(document):
    """Return the anchors that GitHub generates for a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_and_functions_named_in_the_contributors_guide_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"(?:portwatch|bpf|tests|scripts|bench|deploy)/[\w/.-]*\w\.\w+", text):
        assert (ROOT / path).exists(), path
    for path, name in re.findall(r"`([\w/.]+\.\w+):([\w.]+)`", text):
        definition = rf"(?:def|class|INLINE \w+|^int) {name.rpartition('.')[2]}\b"
        assert re.search(definition, (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"


def test_messages_quoted_in_troubleshooting_exist_in_the_source():
    sources = "".join(path.read_text() for path in (ROOT / "portwatch").rglob("*.py"))
    joined = re.sub(r'"\s*f?"', "", sources)  # a long message consists of several adjacent literals
    quoted = re.findall(r'^\| "([^"]+)"', (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    parts = [part.strip() for message in quoted for part in message.split("...") if part.strip()]
    assert [part for part in parts if part not in joined] == []


def test_the_readme_has_at_most_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_every_field_of_an_event_is_explained():
    explained = set(re.findall(r"`(\w+)`", (DOCS / "events.md").read_text()))
    assert set(Event(1, 1, "open", "event").as_dict()) <= explained


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_explained(name):
    document = DOCS / ("serve.md" if name == "serve" else "commands.md")
    explained = document.read_text()
    command = portwatch.get_command(click.Context(portwatch), name)
    missing = {option for option in long_options(command) if f"`{option}" not in explained}
    assert missing == set()


def test_every_command_is_explained():
    explained = (DOCS / "commands.md").read_text()
    assert [name for name in COMMANDS if f"\n## {name}\n" not in explained] == []


def test_every_program_of_core_is_in_a_set_of_hooks():
    from portwatch.engines.common_hooks import FORKS, ITERATOR
    from portwatch.engines.core.hooks import HOOK_SETS

    source = "".join((ROOT / "bpf" / name).read_text() for name in ("core.bpf.c", "fentry.h"))
    programs = set(re.findall(r"^int (\w+)\(", source, re.MULTILINE))
    in_sets = (
        (*hooks.tracing, *hooks.cgroup, *hooks.tracepoints, *hooks.for_failures, *hooks.for_ephemeral)
        for hooks in HOOK_SETS.values()
    )
    assert programs == {ITERATOR, *FORKS}.union(*in_sets)


def test_every_program_of_bcc_is_in_a_set_of_hooks():
    from portwatch.engines.bcc import hooks
    from portwatch.engines.common_hooks import FORKS, ITERATOR, SYSCALL_TRACEPOINTS

    source = (ROOT / "bpf" / "bcc.bpf.c").read_text()
    programs = set(re.findall(r"^int (\w+)\(", source, re.MULTILINE))
    stable = {
        *FORKS,
        *(hook.program for hook in hooks.CGROUP),
        *hooks.RAW_TRACEPOINTS,
        *SYSCALL_TRACEPOINTS,
    }
    probes = (*hooks.KPROBES, *hooks.FAILURE_KPROBES, *hooks.MPTCP_KPROBES)
    probed = {name for probe in probes for name in (probe.entry, probe.exit) if name}
    assert programs == {*stable, *probed, ITERATOR}


def test_the_example_of_a_configuration_file_is_valid(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", (DOCS / "serve.md").read_text(), re.DOTALL)
    (tmp_path / "portwatch.toml").write_text(example)
    result = CliRunner().invoke(portwatch, ["serve", "--check", "--config", str(tmp_path / "portwatch.toml")])
    assert (result.exit_code, result.stderr) == (0, "")


def test_every_metric_is_explained():
    tally, shown = Tally(), SeriesOptions(pid=True, ephemeral=range(0), expected=(), max_series=1)
    view = ScrapeData((), shown, {"engine": "core"}, Counts(), {"kernel": 0}, 0)
    families = re.findall(r"^# TYPE (portwatch_\w+)", exposition(view, tally, "")[0].decode(), re.MULTILINE)
    explained = (DOCS / "metrics.md").read_text()
    assert {name for name in families if f"`{name}" not in explained} == set()


def test_every_alert_is_explained():
    rules = (ROOT / "deploy" / "prometheus" / "portwatch.rules.yml").read_text()
    explained = (DOCS / "metrics.md").read_text()
    assert {name for name in re.findall(r"alert: (\w+)", rules) if f"`{name}`" not in explained} == set()
