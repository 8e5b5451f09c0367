# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What lies in launch/, as far as a machine without a cluster can tell.

Clusters are faked by programs of their names on the path; the files are linted and checked against
published schemas; and every command line in them is one that `medloc train` accepts.
"""

import copy
import fnmatch
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from medloc_jax import distributed, watchdog
from medloc_jax.cli import job as jobs
from medloc_jax.cli import validate

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
README = (LAUNCH / "README.md").read_text()
RESTARTED = {75, 77, 137, 143}
SHELL_FILES = sorted(path for pattern in ("*.sh", "*.sbatch") for path in LAUNCH.rglob(pattern)) + [
    ROOT / ".ci" / "run"
]


def _tool(name):
    """A linter that comes as a wheel, beside this Python; only off Linux is there none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None and sys.platform != "linux":
        pytest.skip(f"no wheel of {name} for this platform")
    assert found, f"{name} is missing: pip install -e '.[test]'"
    return found


def _fake(folder, **programs):
    """Programs of these names and bash bodies; returns a path variable that finds them first."""
    folder.mkdir(exist_ok=True)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def _check_command(arguments):
    """Whether `medloc train` would take them: file, names, types and values of the fields."""
    verb, *rest = arguments
    assert verb == "train"
    workdir = [argument for argument in rest if argument.startswith("--workdir=")]
    assert len(workdir) == 1
    rest = [a.replace("=configs/", f"={ROOT}/configs/") for a in rest if a not in workdir]
    config = jobs.parse(rest, "train", lambda values: None).config
    validate.check(config)
    return config


def _check_mesh(config, num_devices):
    """Whether the mesh has so many devices, and every batch divides over it."""
    mesh = config.mesh
    given = [size for size in (mesh.data, mesh.fsdp, mesh.tensor) if size != -1]
    rest, over = divmod(num_devices, math.prod(given))
    assert over == 0 and (rest == 1 or len(given) < 3)
    split = (mesh.data if mesh.data != -1 else rest) * (mesh.fsdp if mesh.fsdp != -1 else rest)
    for rows in (config.rl.prompts_per_step, config.rl.micro_batch_prompts, config.eval.batch_size):
        assert rows % split == 0


# Shell.


def test_shell_files_are_clean():
    done = subprocess.run(
        [_tool("shellcheck"), "--external-sources", *map(str, SHELL_FILES)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert len(SHELL_FILES) >= 7


def test_a_fault_in_a_shell_file_is_seen(tmp_path):
    (tmp_path / "x.sh").write_text("#!/usr/bin/env bash\nfor f in $(ls *); do rm $f; done\n")
    assert subprocess.run([_tool("shellcheck"), tmp_path / "x.sh"], capture_output=True).returncode


def test_every_file_says_whose_it_is():
    for path in LAUNCH.rglob("*"):
        if path.is_file() and path.suffix not in (".md", ".py", ".dockerignore"):
            assert "SPDX-License-Identifier: Apache-2.0" in path.read_text()[:200], path


# SLURM.

# Keeps what it was given, and ends as told; `medloc` itself would take minutes.
_SRUN = 'printf "%s\\n" "$@" > "$SEEN/srun"; [[ -z ${NOTICE:-} ]] || kill -TERM $PPID; exit "$CODE"'


def _submit(script, tmp_path, code=0, arguments=(), **environment):
    """Runs a batch script as sbatch would; returns the result and what srun and scontrol saw."""
    path = _fake(tmp_path / "bin", srun=_SRUN, scontrol='printf "%s\\n" "$@" > "$SEEN/scontrol"')
    spool = tmp_path / "slurm_script"  # sbatch runs a copy of the file
    shutil.copy(LAUNCH / "slurm" / script, spool)
    seen = {name: tmp_path / name for name in ("srun", "scontrol")}
    for file in seen.values():
        file.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(spool), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ
        | {"PATH": path, "SEEN": str(tmp_path), "CODE": str(code)}
        | {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17"}
        | environment,
    )
    return done, {
        name: file.read_text().splitlines() for name, file in seen.items() if file.exists()
    }


@pytest.mark.parametrize("script", ["one_node_4xh800.sbatch", "multi_node.sbatch"])
def test_a_batch_script_starts_a_training_that_is_accepted(script, tmp_path):
    done, seen = _submit(script, tmp_path, arguments=["--config.seed=43"], WORKDIR="runs/x y")
    assert done.returncode == 0, done.stderr
    assert "scontrol" not in seen
    start = seen["srun"].index("medloc")
    command = seen["srun"][start + 1 :]
    assert "--workdir=runs/x y" in command
    config = _check_command(command)
    assert config.seed == 43 and config.checkpoint.asynchronous
    assert config.model.frozen_dtype == "bfloat16"
    text = (LAUNCH / "slurm" / script).read_text()
    gpus = int(re.findall(r"--gpus-per-node=(\d+)", text)[0])
    nodes = int(re.findall(r"^#SBATCH --nodes=(\d+)", text, re.MULTILINE)[0])
    _check_mesh(config, gpus * nodes)
    for option in ("--requeue", "--signal=TERM@", "--open-mode=append"):
        assert f"#SBATCH {option}" in text


@pytest.mark.parametrize("code", [0, 1, 2, 75, 76, 77, 130, 137, 143])
def test_a_job_is_queued_again_where_that_helps(code, tmp_path):
    done, seen = _submit("one_node_4xh800.sbatch", tmp_path, code)
    assert done.returncode == code
    assert seen.get("scontrol") == (["requeue", "17"] if code in RESTARTED else None)


def test_a_job_that_was_cancelled_or_never_gets_on_is_not_queued_again(tmp_path):
    for environment in ({"NOTICE": "1"}, {"SLURM_RESTART_COUNT": "100"}):
        done, seen = _submit("one_node_4xh800.sbatch", tmp_path, 143, **environment)
        assert done.returncode == 143 and "scontrol" not in seen
    _, seen = _submit("one_node_4xh800.sbatch", tmp_path, 143, SLURM_RESTART_COUNT="99")
    assert "scontrol" in seen


def test_the_exit_codes_are_those_of_the_program():
    ours = {watchdog.LOST, watchdog.NONFINITE, watchdog.STOPPED_BY_SIGTERM}
    ours.add(distributed.DisagreementError.exit_code)
    documented = dict(re.findall(r"^\| (\d+) \|.*?\| (yes|no|) ?\|", README, re.MULTILINE))
    assert ours <= {int(code) for code in documented}
    assert {int(code) for code, again in documented.items() if again == "yes"} == RESTARTED
    in_script = re.search(r"^  ([\d |]+)\) ;;", (LAUNCH / "slurm/train.sh").read_text(), re.M)
    assert in_script and {int(code) for code in in_script[1].split("|")} == RESTARTED
    for document in _jobsets():
        for rule in _job(document)["podFailurePolicy"]["rules"]:
            assert not RESTARTED & set(rule["onExitCodes"]["values"])


# GKE.


def _jobsets():
    return list(yaml.safe_load_all((LAUNCH / "gke" / "jobset.yaml").read_text()))


def _job(document):
    (replicated,) = document["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def _check_jobset(document):
    """Raises for what the published schemas of JobSet and of Kubernetes' Job do not allow."""
    import jsonschema
    import kubernetes_validate

    schema = yaml.safe_load((ROOT / "tests" / "jobset_schema.yaml").read_text())
    jsonschema.validate(document, schema)
    for replicated in document["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}}
        job |= {"spec": replicated["template"]["spec"]}
        kubernetes_validate.validate(job, "1.33", strict=True)


@pytest.mark.parametrize("document", _jobsets(), ids=lambda document: document["metadata"]["name"])
def test_a_jobset_is_what_the_schemas_allow_and_starts_a_training(document):
    _check_jobset(document)
    job = _job(document)
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # or podFailurePolicy is refused
    (container,) = pod["containers"]
    config = _check_command(container["args"])
    assert config.checkpoint.asynchronous
    (devices,) = container["resources"]["limits"].values()
    _check_mesh(config, job["completions"] * devices)
    topology = pod["nodeSelector"].get("cloud.google.com/gke-tpu-topology")
    if topology:
        x, y, z = map(int, topology.split("x"))
        assert x * y * z == job["completions"] * devices
    for variable in container.get("env", ()):
        if variable["name"] == "MEDLOC_NUM_PROCESSES":
            assert variable["value"] == str(job["completions"])
        if variable["name"] == "MEDLOC_COORDINATOR":
            # <set>-<job>-<job index>-<pod index>.<subdomain>
            name, subdomain = document["metadata"]["name"], document["spec"]["network"]["subdomain"]
            (replicated,) = document["spec"]["replicatedJobs"]
            host, port = variable["value"].split(":")
            assert host == f"{name}-{replicated['name']}-0-0.{subdomain}"
            assert int(port) in [entry["containerPort"] for entry in container["ports"]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document["spec"].update(failurePolicies={}),
        lambda document: document["spec"]["failurePolicy"].update(maxRestarts="100"),
        lambda document: document["spec"]["failurePolicy"]["rules"][0].update(action="Stop"),
        lambda document: _job(document).update(backofLimit=1),
        lambda document: _job(document)["template"]["spec"].update(restartPolicy=3),
        lambda document: _job(document)["template"]["spec"]["containers"][0].update(arg=["x"]),
    ],
)
def test_a_jobset_with_a_slip_is_refused(spoil):
    document = copy.deepcopy(_jobsets()[1])
    spoil(document)
    with pytest.raises(Exception, match="."):
        _check_jobset(document)


# Cloud TPU VM.

_GCLOUD = """
printf '%s\\n' "$*" >> "$SEEN/gcloud"
for argument; do
  case $argument in --command=*) exec bash -c "${argument#--command=}" ;; esac
done
"""
_MEDLOC = """
printf '%s\\n' "$MEDLOC_COORDINATOR" "$@" > "$SEEN/medloc"
echo "step 1"
[[ $* != *wait* ]] || { trap 'exit 143' TERM; while :; do sleep 0.05; done; }
exit 75
"""


def _tpu_vm(tmp_path, *arguments):
    home = tmp_path / "home"
    (home / "medloc_jax" / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    _fake(home / "medloc_jax" / ".venv" / "bin", medloc=_MEDLOC)
    path = _fake(tmp_path / "bin", gcloud=_GCLOUD)
    return subprocess.Popen(
        ["bash", str(LAUNCH / "tpu_vm" / "run.sh"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": path, "SEEN": str(tmp_path), "HOME": str(home)},
    )


def test_all_workers_of_a_tpu_vm_get_the_same_command(tmp_path):
    flags = ["--config=configs/demo.py", "--workdir=gs://b/a b", "--config.x=(1,'2')"]
    process = _tpu_vm(tmp_path, "pod", "us-east5-a", "train", *flags)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert (tmp_path / "medloc").read_text().splitlines() == ["auto", "train", *flags]
    call = (tmp_path / "gcloud").read_text()
    assert "tpu-vm ssh pod --zone=us-east5-a --worker=all" in call
    assert "step 1" in (tmp_path / "home" / "medloc.log").read_text()


def test_a_training_on_a_tpu_vm_is_stopped_by_a_signal(tmp_path):
    training = _tpu_vm(tmp_path, "pod", "zone", "train", "--workdir=wait")
    while not (tmp_path / "medloc").exists():
        assert training.poll() is None
    stop = _tpu_vm(tmp_path, "pod", "zone", "stop")
    stop.communicate(timeout=60)
    training.communicate(timeout=60)
    assert (stop.returncode, training.returncode) == (0, 143)


@pytest.mark.parametrize("arguments", [(), ("pod", "zone"), ("pod", "zone", "fly")])
def test_the_tpu_vm_script_says_how_to_use_it(arguments, tmp_path):
    process = _tpu_vm(tmp_path, *arguments)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2 and ("run.sh" in error)


# Container.

_DOCKERFILE = (LAUNCH / "container" / "Dockerfile").read_text()


def test_the_dockerfile_is_clean():
    done = subprocess.run(
        [_tool("hadolint"), str(LAUNCH / "container" / "Dockerfile")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_fault_in_a_dockerfile_is_seen(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && sudo pip install jax\n")
    assert subprocess.run(
        [_tool("hadolint"), tmp_path / "Dockerfile"], capture_output=True
    ).returncode


def test_what_the_dockerfile_copies_is_there_and_sent():
    ignore = (LAUNCH / "container" / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignore if line.startswith("!")]
    copied = [
        source
        for line in re.findall(r"^COPY (.+)$", _DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert "medloc_jax" in copied and "pyproject.toml" in copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), source
    assert "\nUSER 1000\n" in _DOCKERFILE
    assert re.search(r"^FROM \S+:\d+\.\d+\.\d+\S*$", _DOCKERFILE, re.MULTILINE)


def test_extras_and_versions_of_the_container_are_those_of_the_project():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    always = re.search(r'"\.\[([a-z,]+)\$\(', _DOCKERFILE)
    assert always is not None
    named = [*always[1].split(","), "cuda", "tpu"]
    assert set(named) <= set(extras)
    pins = dict(
        line.split("==")
        for line in (LAUNCH / "container" / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    wanted = [*project["dependencies"], *(entry for name in named for entry in extras[name])]
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"python_version": "3.12"}):
            continue
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is pinned"


# This machine, and the words.


@pytest.mark.multiprocess
def test_flags_alone_are_those_of_a_training():
    done = subprocess.run(
        ["bash", "launch/local.sh", "2", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stdout
    assert {"[0] Train, or go on training.", "[1] Train, or go on training."} <= set(
        done.stdout.splitlines()
    )


def test_what_the_readme_names_is_there():
    for path in re.findall(r"`(?:sbatch )?(?:--nodes=4 )?(launch/[\w./]+)", README):
        assert (ROOT / path).exists(), path
    from medloc_jax import config

    sections = "|".join(
        name for name, value in config.default_config().items() if hasattr(value, "keys")
    )
    fields = re.findall(rf"`((?:{sections})\.\w+)", README)
    assert len(fields) > 8
    for field in fields:
        section, name = field.split(".")
        assert name in config.default_config()[section], field
