# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A sweep of stub runs: what is started, skipped, resumed, told, chosen and printed."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import small_runs

from medloc_jax.cli import job as jobs
from medloc_jax.cli import main as cli_main
from medloc_jax.cli import sweep, sweep_launch, sweep_process

STUB = Path(__file__).with_name("stub_train.py")
SWEEP = """
from medloc_jax.config import arm, default_sweep
def get_config():
    sweep = default_sweep([{arms}], "configs/demo.py")
    sweep.seeds = (42, 43)
    sweep.changes = (("num_steps", 4), ("data.manifest", "m.jsonl"))
    {more}
    return sweep
"""
WARM = (
    "sweep.warm_start = 'configs/demo_sft.py'; "
    "sweep.warm_start_changes = (('data.manifest', 'm.jsonl'),)"
)
TUNED = WARM + "; sweep.tune_values = (1e-4, 3e-4, 1e-3)"
ALL = ("zero_shot", "sft", "fixed", "medloc")


class Made:
    """A sweep file, a folder, and the orders of its stub."""

    def __init__(self, folder, arms=ALL, more=""):
        self.workdir, self.orders = folder / "runs", folder / "orders.json"
        self.file = folder / "sweep.py"
        listed = ", ".join(arm if "(" in arm else f"arm({arm!r})" for arm in arms)
        self.file.write_text(SWEEP.format(arms=listed, more=more))
        experiments = [f"configs/demo.py:{name}" for name in (*ALL, "raw_iou", "boxmed")]
        configs = {}
        for name in (*experiments, "configs/demo_sft.py"):
            config = jobs.parse([f"--config={name}"], "train", lambda values: None).config
            configs[name] = json.loads(config.to_json_best_effort())
        self.told = {"configs": configs, "do": {}, "map": {}}

    def arguments(self, *flags):
        return [f"--config={self.file}", f"--workdir={self.workdir}", *flags]

    def command(self):
        self.orders.write_text(json.dumps(self.told))
        return [sys.executable, "-S", "-E", str(STUB), str(self.orders)]

    def __call__(self, *flags, **do):
        self.told["do"] = do.get("do", {})
        return sweep.main(self.arguments(*flags), self.command())

    def record(self):
        return json.loads((self.workdir / "sweep.json").read_text())

    def states(self):
        return {run["name"]: run["state"] for run in self.record()["runs"]}

    def starts(self, name):
        path = self.workdir / name / "starts"
        return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_launch, "_POLL_SECONDS", 0.01)
    return lambda *args, **kwargs: Made(tmp_path, *args, **kwargs)


def test_every_arm_runs_once_a_seed_and_is_not_run_again(made, capsys):
    runs = made(("fixed", "medloc"))
    assert runs() == 0
    names = ["fixed/42", "medloc/42", "fixed/43", "medloc/43"]  # by seed
    assert runs.states() == dict.fromkeys(names, "finished")
    out = capsys.readouterr().out
    assert re.search(r"^1 of 4: fixed/42 \d+ s, val mAP 0.100; about \d+ s left$", out, re.M)
    assert "4 finished, 0 failed" in out and f"medloc report {runs.workdir}" in out
    for name in names:
        config = json.loads((runs.workdir / name / "config.json").read_text())
        arm, seed = name.split("/")
        assert (config["label"], config["seed"], config["num_steps"]) == (arm, int(seed), 4)
        assert config["curriculum"]["schedule"] == arm
    assert runs() == 0
    assert [runs.starts(name) for name in names] == [1] * 4
    assert runs.states() == dict.fromkeys(names, "finished")
    assert "4 finished" in capsys.readouterr().out


def test_a_run_that_fails_is_no_result_and_the_others_go_on(made, capsys):
    runs = made(("fixed", "medloc"))
    orders = {"fixed/42": "fail", "medloc/42": "silent", "fixed/43": "half"}
    assert runs(do=orders) == 1
    entries = {run["name"]: run for run in runs.record()["runs"]}
    assert [run["state"] for run in entries.values()] == ["failed"] * 3 + ["finished"]
    assert entries["fixed/42"]["why"] == "medloc train: error: the disk is full (code 2)"
    assert "without its last step" in entries["medloc/42"]["why"]  # it left nothing
    assert "without its last step" in entries["fixed/43"]["why"]  # it stopped half way
    out = capsys.readouterr().out
    assert "1 finished, 3 failed" in out and "fixed/42/log.txt" in out
    log = (runs.workdir / "fixed/42/log.txt").read_text()
    assert log.startswith("$ medloc train --config=configs/demo.py:fixed") and "bye" in log
    # Once mended, those are run again, and the finished one is not.
    assert runs() == 0
    assert [runs.starts(name) for name in entries] == [2, 2, 2, 1]


def test_nothing_waits_for_an_arm_that_the_sweep_has_lost(made):
    runs = made(("fixed", "medloc"))
    assert runs("--seeds=42", do={"medloc/42": "fail"}) == 1
    runs = made(("fixed",))
    assert runs("--seeds=42") == 0
    assert runs.states() == {"fixed/42": "finished"}


def test_evaluations_belong_to_a_finished_run(made):
    runs = made(("fixed",))
    assert runs("--seeds=42") == 0
    (runs.workdir / "fixed/42/eval/test-4/metrics.json").unlink()
    assert runs("--seeds=42") == 0 and runs.starts("fixed/42") == 2


def test_tuning_chooses_by_val_and_never_looks_at_test(made, capsys):
    runs = made(more=TUNED)
    runs.told["map"] = {"0.0001": 0.2, "0.0003": 0.5, "0.001": 0.5, "0.003": 0.4}
    assert runs("--only=zero_shot,fixed") == 0
    chosen = json.loads((runs.workdir / "tuning/fixed/chosen.json").read_text())
    assert chosen["chosen"] == 3e-4  # the first of equals
    assert [(one["value"], one["result"]) for one in chosen["tries"]] == [
        (1e-4, 0.2),
        (3e-4, 0.5),
        (1e-3, 0.5),
    ]
    for value in ("0.0001", "0.0003", "0.001"):
        folder = runs.workdir / "tuning/fixed" / value
        config = json.loads((folder / "config.json").read_text())
        assert config["seed"] == 41 and config["eval"]["final_split"] == ""
        assert [path.name for path in (folder / "eval").iterdir()] == ["val-4"]
    for name in ("fixed/42", "fixed/43"):
        config = json.loads((runs.workdir / name / "config.json").read_text())
        assert config["optim"]["learning_rate"] == 3e-4
        assert config["model"]["init_from"] == f"{runs.workdir}/warm_start"
    # Nothing is tuned of what is not trained.
    assert not (runs.workdir / "tuning/zero_shot").exists()
    assert json.loads((runs.workdir / "zero_shot/42/config.json").read_text())["num_steps"] == 0
    assert runs.record()["tuned"] == {"fixed": {"field": "optim.learning_rate", "value": 3e-4}}
    assert "fixed: optim.learning_rate = 0.0003, by 3 tries" in capsys.readouterr().out
    # Another arm later adds to the record.
    assert runs("--only=sft", "--seeds=42") == 0
    assert {run["arm"] for run in runs.record()["runs"]} == {"", "zero_shot", "fixed", "sft"}
    assert set(runs.record()["tuned"]) == {"fixed", "sft"}


def test_a_warm_start_or_a_try_that_fails_fails_what_needs_it(made):
    runs = made(("fixed", "medloc"), more=TUNED)
    assert runs("--seeds=42", do={"warm_start": "fail"}) == 1
    states = runs.states()
    assert set(states.values()) == {"failed"} and len(states) == 9
    assert not (runs.workdir / "medloc").exists()
    assert runs("--seeds=42", do={"tuning/fixed/0.001": "fail"}) == 1
    failed = {run["name"]: run["why"] for run in runs.record()["runs"] if run["state"] == "failed"}
    assert set(failed) == {"tuning/fixed/0.001", "fixed/42"}
    assert failed["fixed/42"] == "its try tuning/fixed/0.001 failed"
    assert runs.states()["medloc/42"] == "finished"


def test_a_finished_run_of_another_configuration_is_refused(made):
    runs = made(("fixed", "medloc"))
    assert runs("--only=fixed", "--seeds=42") == 0
    for change, told in (
        ("num_steps=6", "num_steps 4 -> 6"),
        ("rl.group_size=4", "rl.group_size 8 -> 4"),
        ("eval.final_split=val", "eval.final_split 'test' -> 'val'"),
    ):
        with pytest.raises(ValueError, match=f"fixed/42 holds a run .*{told}.*remove or"):
            runs("--only=fixed", "--seeds=42", f"--set={change}")
    assert runs.starts("fixed/42") == 1
    # Other arms, and what does not change numbers, are not touched by that.
    assert runs("--only=fixed", "--seeds=42", "--set=log.rollouts_every=7") == 0
    assert runs.starts("fixed/42") == 1


def test_a_moved_folder_keeps_its_runs(made, tmp_path):
    runs = made(("fixed",), more=WARM)
    assert runs("--seeds=42") == 0
    runs.workdir.rename(tmp_path / "elsewhere")
    runs.workdir = tmp_path / "elsewhere"
    assert runs("--seeds=42") == 0 and runs.starts("fixed/42") == runs.starts("warm_start") == 1


def test_what_makes_a_method_is_not_changed_with_all(made, capsys):
    runs = made(("zero_shot", "sft", "boxmed", "arm('mine', 'boxmed', {'data.template': 'box'})"))
    flags = ("--seeds=42", "--set=num_steps=6", "--set=rl.prompts_per_step=4")
    assert runs(*flags, "--set=data.template=medloc") == 0
    out = capsys.readouterr().out
    assert "boxmed keeps its own data.template: that is what the arm stands for" in out
    config = {
        name: json.loads((runs.workdir / name / "42/config.json").read_text())
        for name in ("zero_shot", "sft", "boxmed", "mine")
    }
    assert [one["num_steps"] for one in config.values()] == [0, 6, 6, 6]
    assert [one["data"]["template"] for one in config.values()] == [
        *("medloc", "medloc", "boxmed", "box")
    ]
    assert config["sft"]["sft"]["batch_size"] == 4  # the batches of GRPO


def test_print_gives_lines_that_a_shell_takes(made, capsys):
    runs = made(("fixed", "medloc"), more=TUNED)
    runs.command()
    assert runs("--print", "--seeds=42", "--set=data.manifest=a b.jsonl") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not runs.workdir.exists()
    launches = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert all(words[:2] == ["medloc", "train"] for words in launches)
    folders = [words[3].removeprefix(f"--workdir={runs.workdir}/") for words in launches]
    tries = [f"tuning/{arm}/{rate}" for arm in ("fixed", "medloc") for rate in (1e-4, 3e-4, 1e-3)]
    assert folders == ["warm_start", *tries]
    assert "--config.data.manifest=a b.jsonl" in launches[1]
    assert "fixed, medloc need a value that the tuning lines choose" in lines[-1]
    # What they choose is used once it is there, and the lines are the very commands of the runs.
    assert runs("--only=medloc", "--seeds=42") == 0
    capsys.readouterr()
    assert runs("--print", "--only=medloc", "--seeds=42") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "--config.optim.learning_rate=0.0001" in shlex.split(last)
    log = (runs.workdir / "medloc/42/log.txt").read_text()
    assert log.splitlines()[0] == f"$ {last}"
    command = [*runs.command(), *shlex.split(last)[2:]]
    assert subprocess.run(command, cwd=small_runs.ROOT).returncode == 0


def test_print_chooses_by_the_tries_that_are_there(made, capsys):
    """A cluster leaves tries and no chosen.json; one that is there may be of other values."""
    runs = made(("fixed",), more=TUNED)
    runs.told["map"] = {"0.0001": 0.2, "0.0003": 0.5}
    assert runs("--seeds=42") == 0
    chosen = runs.workdir / "tuning/fixed/chosen.json"
    for there in ("nothing", '{"chosen": 0.001}'):
        chosen.unlink()
        if there != "nothing":
            chosen.write_text(there)
        capsys.readouterr()
        assert runs("--print", "--seeds=42") == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert "--config.optim.learning_rate=0.0003" in shlex.split(last)
    assert runs("--print", "--seeds=42", "--config.tune_values=(1e-4,5e-4)") == 0
    out = capsys.readouterr().out
    assert "fixed need a value" in out and "# The runs." not in out


@pytest.mark.parametrize(
    ("arm", "flags"),
    [
        ("fixed", ["--set=eval.split=test"]),
        ("fixed", ["--set=eval.split=test", "--set=eval.final_split="]),
        ("fixed", ["--set=eval.final_split=val"]),
        ("arm('written', 'fixed', {'eval.split': 'test'})", []),
    ],
)
def test_tuning_must_not_look_at_test(made, arm, flags):
    runs = made((arm,), more=TUNED)
    with pytest.raises(ValueError, match="tuning/.*eval.split=.*tuning must not look at test; set"):
        runs(*flags)
    assert not runs.workdir.exists()
    assert runs("--print", "--config.tune_values=()", *flags) == 0


def test_an_arm_may_be_left_untuned(made, capsys):
    untuned = "arm('written', 'fixed', {'eval.split': 'test'}, tune=('optim.learning_rate', ()))"
    assert made(("medloc", untuned), more=TUNED)("--print", "--seeds=42") == 0
    assert "/written/42" in capsys.readouterr().out


def test_what_of_set_does_not_reach_a_run_is_told(made, capsys):
    runs = made(("zero_shot", "fixed", "medloc"), more=TUNED)
    flags = ("optim.learning_rate=1e-3", "eval.final_split=", "data.manifest=n.jsonl")
    assert runs("--print", *(f"--set={flag}" for flag in flags)) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "does not reach" in line]
    assert told == [
        "# --set=optim.learning_rate does not reach fixed, medloc: its value is chosen by tuning",
        "# --set=eval.final_split does not reach the tries: they look at no final split",
        "# --set of eval.final_split, optim.learning_rate does not reach the warm start: "
        "use warm_start_changes",
    ]


def test_the_report_is_told_what_differs_on_purpose_and_the_reference(made, capsys):
    runs = made(("fixed", "medloc"), more="sweep.allow = ('budget',); sweep.reference = 'fixed'")
    assert runs("--seeds=42") == 0
    line = f"Report: medloc report {runs.workdir} --allow=budget"
    assert f"{line} --reference=fixed\n" in capsys.readouterr().out
    assert (runs.record()["allow"], runs.record()["reference"]) == (["budget"], "fixed")
    runs.workdir.rename(runs.workdir.with_name("before"))
    assert runs("--seeds=42", "--only=medloc") == 0
    assert f"{line}\n" in capsys.readouterr().out  # no run of the reference is there
    for more, told in (("reference = 'fixt'", "'fixt' is no arm"), ("allow = ('all',)", "'all'")):
        with pytest.raises(ValueError, match=told):
            made(("fixed",), more=f"sweep.{more}")()


def test_a_run_is_told_when_it_starts(made, capsys):
    runs = made(("fixed", "medloc"))
    assert runs("--seeds=42") == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [re.match(r"\d of 2: \w+/42 (\.\.\.$)?", line)[0].strip() for line in lines[:4]]
    assert heads == [
        *("1 of 2: fixed/42 ...", "1 of 2: fixed/42"),
        *("2 of 2: medloc/42 ...", "2 of 2: medloc/42"),
    ]


def test_help_lists_the_flags(capsys):
    for arguments in (["--help"], ["--config=x.py", "--help"]):
        with contextlib.suppress(SystemExit):
            (sweep.main if len(arguments) > 1 else _verb)(arguments)
        out = capsys.readouterr().out
        names = ("config", "workdir", "only", "seeds", "jobs (1)", "set", "print")
        assert all(f"\n  --{name}" in out for name in names) and "runs at a time" in out


def _verb(arguments):
    return cli_main.main(["sweep", *arguments])


def test_jobs_share_the_cores(made, monkeypatch):
    limits = ("PJRT_NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for name in limits:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sweep_process, "num_cores", lambda: 4)
    runs = made(("fixed", "medloc"))
    assert runs("--seeds=42", "--jobs=2") == 0
    assert (runs.workdir / "fixed/42/starts").read_text() == "2\n"
    # Alone, it has all of them.
    assert not set(limits) & set(sweep_process.environment(1))
    assert all(sweep_process.environment(2)[name] == "2" for name in limits)


def test_a_signal_ends_the_runs_and_the_next_start_goes_on(made, capsys):
    runs = made(("fixed", "medloc"))

    def stop():
        deadline = time.monotonic() + 20
        while not all((runs.workdir / f"{a}/42/waits").exists() for a in ("fixed", "medloc")):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    code = runs("--jobs=2", do={"/42": "wait"})
    thread.join()
    assert code == 128 + signal.SIGTERM
    assert set(runs.states().values()) == {"waiting"}
    out = capsys.readouterr().out
    assert "stopping: fixed/42, medloc/42" in out
    again = re.search(r"4 runs are left. To go on: medloc sweep (.*)", out)
    assert again and shlex.split(again[1]) == runs.arguments("--jobs=2")
    assert runs() == 0 and runs.starts("fixed/42") == 2 and runs.starts("fixed/43") == 1


def test_two_sweeps_do_not_share_a_folder(made):
    runs = made(("fixed",))
    runs.workdir.mkdir()
    with sweep._alone(runs.workdir), pytest.raises(ValueError, match="another sweep at work"):
        runs()
    assert runs() == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=fixt"], "--only=fixt: no such arm; there are fixed, medloc"),
        (["--seeds=4x"], "--seeds=4x: give whole numbers"),
        (["--seeds=4,4"], "--seeds=4,4: one is there twice"),
        (["--jobs=0"], "--jobs=0: give 1 or more"),
        (["--set=num_steps"], "write --set=FIELD=VALUE"),
        (["--set=seed=7"], "--set=seed: every run has its own; use --seeds"),
        (["--set=label=x"], "--set=label: every run is called by its arm"),
        (["--set=num_steps=3", "--set=num_steps=4"], "num_steps is set twice"),
        (["--set=rl.grup_size=3"], "rl.grup_size"),
        (["--set=rl.group_size=1"], "fixed/42: rl.group_size=1"),
        (["--config.tune_values=(1e-3,)", "--config.tune_seed=42"], "tune_seed 42 is also a seed"),
        (["--config.base=configs/none.py"], "configs/none.py"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(made, capsys, flags, message):
    runs = made(("fixed", "medloc"))
    assert cli_main.main(["sweep", *runs.arguments(*flags)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not runs.workdir.exists()


def test_arms_need_names_of_their_own(made):
    with pytest.raises(ValueError, match="arm 'fixed': arms need different names"):
        made(("fixed", "fixed"))()
    with pytest.raises(ValueError, match="arm 'tuning'"):
        made(("arm('tuning')",))()


def test_drawn_pictures_are_shared(made, tmp_path):
    """Each run would draw thousands of files of its own."""
    runs = made(("fixed", "medloc"))
    small = ("--set=data.manifest=synthetic", "--set=data.synthetic.num_train=3")
    assert runs("--seeds=42", *small, "--set=data.synthetic.num_test=1") == 0
    drawn = runs.workdir / "data/lesions-3-1-0"
    assert (drawn / "manifest.jsonl").is_file()
    for arm in ("fixed", "medloc"):
        assert (runs.workdir / arm / "42/data").resolve() == drawn.resolve()


@pytest.mark.slow
def test_a_real_sweep_of_tiny_runs(tmp_path):
    """Warm start, tuning, zero-shot, SFT and GRPO, by `medloc train` itself, and broken off."""
    arguments = [
        "--config=configs/sweeps/replica.py:synthetic",
        f"--workdir={tmp_path}/runs",
        "--only=zero_shot,sft,medloc",
        "--seeds=42",
        *(
            f"--set={change}"
            for change in (
                "num_steps=3",
                "optim.warmup_steps=0",
                "checkpoint.every=1",
                "eval.every=2",
                "eval.batch_size=16",
                "data.synthetic.num_train=48",
                "data.synthetic.num_test=16",
            )
        ),
        '--config.warm_start_changes=(("num_steps",2),("eval.final_split",""),'
        '("optim.warmup_steps",0),("eval.batch_size",16))',
        "--config.tune_values=(1e-4,)",
    ]
    command = [sys.executable, "-m", "medloc_jax", "sweep", *arguments]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(small_runs.ROOT)}
    environment.pop("PJRT_NPROC", None)

    def run(stop=False):
        process = subprocess.Popen(
            command, cwd=small_runs.ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        if stop:
            metrics = tmp_path / "runs/tuning/medloc/0.0001/metrics.jsonl"
            while process.poll() is None and not metrics.is_file():
                time.sleep(0.1)
            process.terminate()
        out, _ = process.communicate(timeout=1200)
        return process.returncode, out

    code, out = run(stop=True)
    assert code in (143, 0), out
    code, out = run()
    assert code == 0 and "8 finished, 0 failed" in out, out
    for name in ("zero_shot", "sft", "medloc"):
        folder = tmp_path / "runs" / name / "42"
        config = json.loads((folder / "config.json").read_text())
        steps = config["num_steps"]
        assert config["label"] == name
        rows = small_runs.lines(folder / "metrics.jsonl", without="-")
        assert [row["step"] for row in rows] == list(range(steps + 1))
        assert (folder / f"eval/test-{steps}/predictions.jsonl").is_file()
    shot, before = (
        json.loads((tmp_path / f"runs/{name}/42/eval/test-0/metrics.json").read_text())
        for name in ("zero_shot", "sft")
    )
    for one in (shot, before):
        one.pop("image_folder")  # the run's own
    assert shot == before
