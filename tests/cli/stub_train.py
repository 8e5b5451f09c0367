# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Stands for `medloc train` in the tests of sweeps: leaves a run's folder, in milliseconds.

stub_train.py ORDERS --config=... --workdir=...: ORDERS is a JSON file: {"configs": {experiment:
resolved config}, "do": {end of a folder: "fail" | "half" | "wait" | "silent"}, "map": {learning
rate: of the last evaluation}}.
"""

import ast
import json
import os
import signal
import sys
import time
from pathlib import Path


def main(orders, arguments):
    """Does what is ordered for this folder; returns the exit code."""
    given = dict(argument[2:].split("=", 1) for argument in arguments)
    folder = Path(given.pop("workdir"))
    config = orders["configs"][given.pop("config")]
    for name, text in given.items():
        *sections, field = name.removeprefix("config.").split(".")
        place = config
        for section in sections:
            place = place[section]
        try:
            place[field] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            place[field] = text
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "starts", "a") as starts:
        starts.write(f"{os.environ.get('PJRT_NPROC', '')}\n")
    do = next((do for end, do in orders["do"].items() if str(folder).endswith(end)), "")
    steps = config["num_steps"]
    number = orders["map"].get(str(config["optim"]["learning_rate"]), 0.1)
    if do == "silent":
        return 0
    if do == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        (folder / "waits").touch()
        time.sleep(60)
    done = steps // 2 if do in ("fail", "half") else steps
    splits = {config["eval"]["split"], config["eval"]["final_split"]} - {""}
    line = {"step": done, **{f"eval/{split}/map": number for split in splits}}
    with open(folder / "metrics.jsonl", "a") as metrics:
        metrics.write(json.dumps(line) + "\n")
    if do == "fail":
        print("step 1\nmedloc train: error: the disk is full\nbye", flush=True)
        return 2
    for split in splits:
        evaluation = folder / "eval" / f"{split}-{done}"
        evaluation.mkdir(parents=True, exist_ok=True)
        (evaluation / "metrics.json").write_text(json.dumps({"map": number}))
    (folder / "checkpoints" / str(done)).mkdir(parents=True, exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:]))
