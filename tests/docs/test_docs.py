"""What the documents say is so: files, commands, examples and tables are compared with the code."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase
from pydantic import AliasChoices
from typer.core import TyperGroup
from typer.main import get_command

from ops.cli.app import app
from ops.cli.run import Process
from ops.settings import Settings
from schemas.commands import COMMANDS, parse_command
from schemas.event import MAX_BYTES, Event, decode
from schemas.vocabulary import Fault, Result
from telemetry import metrics
from topology.retry import POLICIES, describe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
MAKE_TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
CLI: Any = get_command(app)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# ------------------------------------------------------------------------------------------------ links and files


@pages
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if heading:
            assert heading in _headings(file), target


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`([\w.-]+/[\w./*-]*\w/?)`", _prose(page)):
        if name.split("/")[0] in FOLDERS and "*" not in name and "NNNN" not in name:
            assert (ROOT / name).exists(), name


@pages
def test_make_targets_that_are_named_exist(page: Path) -> None:
    assert set(re.findall(r"(?:^ +|`)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE)) <= MAKE_TARGETS


# ------------------------------------------------------------------------------------------------ commands


@pages
def test_commands_exist_with_their_options(page: Path) -> None:
    for line in _command_lines(page.read_text()):
        _check(line)


def test_a_wrong_command_would_be_found() -> None:
    for line in ("staybus dlq requeu", "staybus events list --stauts done", "staybus run inbund"):
        with pytest.raises(AssertionError):
            _check(line)


def _command_lines(text: str) -> Iterator[str]:
    for inline in re.findall(r"`(staybus [^`]+)`", text):
        yield inline.replace("\n", " ")
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        if line.startswith("    ") and (found := re.match(r"(?:docker compose .*?)?\b(staybus .*)", line.strip())):
            yield from found[1].split(" & ")


def _check(line: str) -> None:
    """The words up to a quote that goes on in the next line, or up to a comment."""
    try:
        words = shlex.split(line, comments=True)[1:]
    except ValueError:
        words = line.partition("'")[0].split()[1:]
    command: Any = CLI
    while isinstance(command, TyperGroup) and words and not words[0].startswith(("-", "<", "…")):
        name = words.pop(0)
        assert name in command.commands, line
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for position, word in enumerate(words):
        if word == "--":
            break
        if word.startswith("--"):
            assert word in known, f"{line}: {word}"
        elif position == 0 and command is CLI.commands["run"]:
            assert word in set(Process), line


# ------------------------------------------------------------------------------------------------ events.md


def test_every_command_example_is_a_valid_command() -> None:
    shown = [event for event in _events() if event.type.startswith("pms.")]
    assert [event.type for event in shown] == list(COMMANDS)
    for event in shown:
        assert event.companyid
        assert parse_command(event.type, event.data)


def test_every_member_of_every_command_is_told() -> None:
    text = (DOCS / "events.md").read_text()
    for type_, model in COMMANDS.items():
        section = text.split(f"### {type_}\n")[1].split("\n#")[0]
        for name, field in model.model_fields.items():
            assert f"`{field.alias or name}`" in section, (type_, name)


def test_every_result_example_has_the_members_that_results_have() -> None:
    shown = {event.type: event for event in _events() if event.type.startswith("core.")}
    assert shown.keys() == set(Result)
    ended = {"command", "connectionId", "deliveryId"}
    assert shown[Result.COMMAND_SUCCEEDED].data.keys() == ended | {"externalId"}
    assert shown[Result.COMMAND_FAILED].data.keys() == ended | {"fault", "error"}
    upserted = {"reservationId", "connectionId", "vendor", "created", "guestId", "reservation"}
    assert shown[Result.RESERVATION_UPSERTED].data.keys() == upserted


def test_faults_and_limits_are_those_of_the_code() -> None:
    text = " ".join((DOCS / "events.md").read_text().split())
    assert "`fault` is one of " + " ".join(f"`{fault.value}`" for fault in Fault) in text
    assert f"{MAX_BYTES // 1024} KiB" in text
    assert f"{4 * MAX_BYTES // 1024} KiB" in text


def test_shell_examples_in_the_documents_are_valid_commands() -> None:
    examples = [
        (type_, data)
        for page in PAGES
        for type_, data in re.findall(r"staybus publish (\S+) [^']*--data '(\{[^']*\})'", page.read_text())
    ]
    assert examples
    for type_, data in examples:
        parse_command(type_, json.loads(data))


def test_the_python_examples_compile() -> None:
    for block in _blocks(DOCS / "events.md", "python"):
        ast.parse(block)


def _events() -> list[Event]:
    """The JSON examples; what is not one event fails here."""
    return [event for block in _blocks(DOCS / "events.md", "json") for event in decode(block.encode())]


# ------------------------------------------------------------------------------------------------ tables


def test_the_settings_table_is_complete() -> None:
    told = {name: default for name, default, *_ in _table("| variable |", DOCS / "operations.md")}
    assert told == {_variable(name): _default(field.default) for name, field in Settings.model_fields.items()}


def _variable(name: str) -> str:
    alias = Settings.model_fields[name].validation_alias
    variable = f"STAYBUS_{name.upper()}"
    assert not isinstance(alias, AliasChoices) or alias.choices[0] == variable
    return f"`{variable}`"


def _default(value: Any) -> str:
    words = {"PydanticUndefined": "required", "None": "none"}
    return words.get(str(value), f"`{value}`")


def test_every_metric_is_told_with_its_labels_and_none_is_made_up() -> None:
    told = {name.strip("`"): labels for name, labels, *_ in _table("| metric |", DOCS / "operations.md")}
    assert told == {_exposed(one): ", ".join(one._labelnames) for one in _metrics()}
    named = {name for page in PAGES for name in re.findall(r"`(staybus_[a-z_]+)`", page.read_text())}
    assert named - {"staybus_api", "staybus_worker"} <= told.keys()


def _metrics() -> list[MetricWrapperBase]:
    return [one for one in vars(metrics).values() if isinstance(one, MetricWrapperBase)]


def _exposed(metric: MetricWrapperBase) -> str:
    return f"{metric._name}_total" if isinstance(metric, Counter) else metric._name


def test_the_retry_table_is_topology_retry() -> None:
    told = {name.strip("`"): (int(n), text) for name, n, text in _table("| policy |", DOCS / "operations.md")}
    assert told == {name: (policy.attempts, describe(policy)) for name, policy in POLICIES.items()}


def test_every_table_of_the_schema_is_told() -> None:
    schema = "\n".join(file.read_text() for file in sorted((ROOT / "migrations/sql").glob("*.up.sql")))
    told = {name for cell, *_ in _table("| table |", DOCS / "architecture.md") for name in re.findall(r"`(\w+)`", cell)}
    assert told == set(re.findall(r"^CREATE (?:TABLE|VIEW) (\w+)", schema, re.MULTILINE))


def test_every_promise_names_tests_that_exist() -> None:
    promises = list(_table("| promise |", DOCS / "reliability.md"))
    assert promises
    for promise, proof in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof)
        assert named, promise
        for file, test in named:
            assert test in _tests(ROOT / file), f"{file}::{test}"


@cache
def _tests(file: Path) -> frozenset[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds))


def test_decisions_are_numbered_and_told_in_three_parts() -> None:
    files = sorted((DOCS / "decisions").glob("*.md"))
    assert [file.name[:4] for file in files] == [f"{number:04}" for number in range(1, len(files) + 1)]
    for file in files:
        text = file.read_text()
        assert text.startswith(f"# {file.name[:4]}. "), file.name
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], file.name


# ------------------------------------------------------------------------------------------------ containers


def test_compose_runs_real_commands_and_only_what_it_declares() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    ours = {name: one for name, one in compose["services"].items() if one["image"].startswith("staybus:")}
    assert ours.keys() == {"key", "migrate", "ingress", "inbound", "outbound", "scheduler"}
    for name, service in ours.items():
        words = service["command"]
        lines = [f"staybus {shlex.join(words)}"] if "entrypoint" not in service else words[0].split(" && ")
        for line in lines:
            _check(line)
        assert service["depends_on"].keys() <= compose["services"].keys()
        assert set(service["environment"]) <= {_variable(known).strip("`") for known in Settings.model_fields}
        if words[0] == "run":
            assert words == ["run", name]
            port = Settings.model_fields[f"{name}_port"].default
            assert f"127.0.0.1:{port}/healthz" in service["healthcheck"]["test"][-1]
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (ROOT / source).exists(), volume


def test_prometheus_scrapes_each_process_where_it_listens() -> None:
    jobs = yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text())["scrape_configs"]
    scraped = {job["job_name"]: job["dns_sd_configs"][0] for job in jobs}
    assert scraped.keys() == {"ingress", "inbound", "outbound", "scheduler"}
    for name, found in scraped.items():
        assert (found["names"], found["port"]) == ([name], Settings.model_fields[f"{name}_port"].default)


def test_the_image_is_built_from_every_package() -> None:
    ignored = (ROOT / ".dockerignore").read_text()
    pyproject = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"\[tool\.hatch\.build\.targets\.wheel\]\npackages = (\[.*\])", pyproject)
    assert packages
    for name in [*json.loads(packages[1]), "pyproject.toml", "uv.lock", "README.md", "LICENSE"]:
        assert f"\n!{name}\n" in ignored, name


# ------------------------------------------------------------------------------------------------ reading


def _prose(page: Path) -> str:
    """Without fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def _headings(page: Path) -> frozenset[str]:
    """As links to them are written."""
    lines = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines)


def _blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found


def _table(head: str, page: Path) -> Iterator[list[str]]:
    """The rows of the table whose first line begins with `head`."""
    lines = page.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head))
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]
