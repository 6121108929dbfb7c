"""The documents say what the code does."""

import importlib.util
import re
from pathlib import Path

from portwatch.model import Event

ROOT = Path(__file__).parent.parent


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
    assert programs == {ITERATOR, *FORKS}.union(*(hooks.programs for hooks in HOOK_SETS.values()))


def test_every_program_of_bcc_is_in_a_set_of_hooks():
    from portwatch.engines.bcc import hooks
    from portwatch.engines.bcc.engine import ITERATOR

    source = (ROOT / "bpf" / "bcc.bpf.c").read_text()
    programs = set(re.findall(r"^int (\w+)\(", source, re.MULTILINE))
    stable = {
        *hooks.FORKS,
        *(hook.program for hook in hooks.CGROUP),
        *hooks.RAW_TRACEPOINTS,
        *hooks.TRACEPOINTS,
    }
    probes = (*hooks.KPROBES, *hooks.FAILURE_KPROBES)
    assert programs == {*stable, *(name for one in probes for name in (one.entry, one.exit) if name), ITERATOR}
