# SPDX-License-Identifier: Apache-2.0
"""What GitHub reads is well formed, and names commands, files and versions that exist."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mxadamax.__main__ import COMMANDS

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which Sphinx brings along")

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(
    path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"
)


def load(path):
    return yaml.safe_load(path.read_text())


def steps_of(path):
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def test_all_are_found():
    assert [path.stem for path in WORKFLOWS] == ["release", "tests"]
    assert [path.stem for path in FORMS] == ["bug", "installation", "wrong-numbers"]
    assert load(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml").keys() == {
        "blank_issues_enabled"
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_permissions_few(path):
    actions = re.findall(r"uses: (.*)", path.read_text())
    assert actions
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", name) for name in actions)
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]
    given = {
        name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job
    }
    assert given == ({"publish": {"id-token": "write"}} if path.stem == "release" else {})
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_of_workflows_exist(path):
    commands = [step["run"] for step in steps_of(path) if "run" in step]
    named = re.findall(r"(?:scripts|\.ci|mxadamax)/[\w./]+", "\n".join(commands))
    assert named and all((ROOT / name).is_file() for name in named)
    for command in commands:
        for script, arguments in re.findall(r"python (scripts/\S+)(.*)", command):
            help_text = subprocess.run(
                [sys.executable, script, "--help"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for option in re.findall(r"--[\w-]+", arguments):
                assert re.search(rf"{option}\b", help_text), option


def test_the_release_is_tested_with_every_python():
    (versions,) = (
        step["with"]["python-version"].split()
        for step in steps_of(ROOT / ".github" / "workflows" / "release.yml")
        if "setup-python" in step.get("uses", "")
    )
    supported = runpy.run_path(str(ROOT / "scripts" / "pythons.py"))["supported_pythons"]()
    assert sorted(versions) == sorted(supported)
    built = re.search(r'^build = "cp3\{(.*)\}-', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert [f"3.{minor}" for minor in built.split(",")] == supported


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_ask_for_what_exists(path):
    form = load(path)
    assert form.keys() == {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} == {"textarea"}
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    text = path.read_text()
    commands = re.findall(r"mxadamax (\w[\w-]*) ?(--\w+)?", text)
    assert ("info", "--json") in commands
    assert {name for name, _ in commands} <= set(COMMANDS)
    for page in re.findall(r"\.\./blob/main/([\w./-]+)", text):
        assert (ROOT / page).is_file(), page
