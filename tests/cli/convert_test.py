# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from medloc_jax import checkpoint
from medloc_jax.cli import convert, main
from medloc_jax.convert import hf_folder, hf_writer, mapping, parameters
from medloc_jax.grounding import prompts
from medloc_jax.model import config as model_config
from medloc_jax.model import qwen2_5_vl, tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))
import random_folders  # noqa: E402
from random_folders import TINY  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "../shared"


@pytest.fixture
def published(tmp_path):
    """A folder as it is published: bfloat16, two files, tokenizer and processor beside them."""
    folder = tmp_path / "published"
    weights = random_folders.tensors(TINY, ml_dtypes.bfloat16)
    content = model_config.to_hf(TINY) | {"torch_dtype": "bfloat16", "use_cache": False}
    random_folders.write(folder, TINY, weights, shards=2, content=content)
    tokenizer.load("", TINY).save(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"do_sample":  true}')
    (folder / "README.md").write_text("Card of the base.")
    return folder


def run(source, target, *more):
    assert convert.main([f"--source={source}", f"--target={target}", *more]) == 0
    return target


def others(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and "safetensors" not in path.name
    }


def test_there_and_back_is_the_same_folder(tmp_path, published, capsys):
    orbax = run(published, tmp_path / "orbax")
    assert checkpoint.is_checkpoint(orbax) and not hf_folder.is_hf_folder(orbax)
    assert others(orbax) == others(published)
    back = run(orbax, tmp_path / "back", "--max_shard_size=500KB")
    assert len(list(back.glob("*.safetensors"))) > 2
    assert others(back) == others(published)
    before, after = random_folders.read(published), random_folders.read(back)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(after[name].view(np.uint16), tensor.view(np.uint16))
    out = capsys.readouterr().out
    assert "to an orbax checkpoint" in out and "to a Hugging Face folder" in out
    assert "s, peak memory 0." in out or "s, peak memory 1." in out


def test_a_converted_folder_starts_a_run(tmp_path, published):
    orbax = run(published, tmp_path / "orbax", "--dtype=float32")
    assert json.loads((orbax / "config.json").read_text())["torch_dtype"] == "float32"
    config = model_config.preset(str(orbax))
    assert config == TINY and tokenizer.load(orbax, config).encode_prompt("a", [1])
    like = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), qwen2_5_vl.Model(TINY).abstract_params()
    )
    first = mapping.flatten(parameters.load(orbax, TINY, like))
    second = mapping.flatten(parameters.load(published, TINY, like))
    for path, array in first.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(second[path]))


@pytest.fixture
def workdir(tmp_path):
    """The folder of a run of the tiny model, with two steps and an evaluation of the second."""
    folder = tmp_path / "run"
    params = mapping.from_hf(random_folders.tensors(TINY), TINY)
    saver = checkpoint.Checkpointer(folder / "checkpoints", keep_last=2, keep_best=0)
    saver.save(10, {"params": params, "optimizer": {"count": np.ones(1)}}, {})
    params["language_model"]["norm"]["scale"] += 1
    saver.save(20, {"params": params, "optimizer": {"count": np.ones(1)}}, {})
    model = {"preset": "tiny", "init_from": "", "tokenizer": ""}
    data = {"min_pixels": 1024, "max_pixels": 4096, "template": "box", "manifest": "m.jsonl"}
    rl = {"max_completion_tokens": 12}
    content = {"method": "sft", "model": model, "data": data, "rl": rl}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "eval" / "test-20").mkdir(parents=True)
    (folder / "eval" / "test-20" / "metrics.json").write_text('{"a50": 0.625}')
    return folder


def test_a_run_becomes_a_folder_with_everything(tmp_path, workdir):
    out = run(workdir, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "medloc.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    assert "| test | 0.625 |" in (out / "README.md").read_text()
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
    found, expected = random_folders.read(out), random_folders.tensors(TINY)
    assert "lm_head.weight" not in found
    np.testing.assert_array_equal(found["model.norm.weight"], expected["model.norm.weight"] + 1)


def test_one_step_of_a_run(tmp_path, workdir):
    out = run(workdir / "checkpoints" / "10", tmp_path / "out", "--dtype=bfloat16")
    found, expected = random_folders.read(out), random_folders.tensors(TINY)
    norm = expected["model.norm.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found["model.norm.weight"], norm)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert "This step (10) was not evaluated." in (out / "README.md").read_text()


def test_a_checkpoint_without_a_config_needs_a_base(tmp_path, workdir, published, capsys):
    (workdir / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json .*: name the model's by --base"):
        run(workdir, tmp_path / "out")
    (published / "medloc.json").write_text('{"template": "box"}')
    out = run(workdir, tmp_path / "out", f"--base={published}")
    assert (out / "vocab.json").read_bytes() == (published / "vocab.json").read_bytes()
    # What is true of the base's weights is not said of others.
    assert not (out / "medloc.json").exists()
    card = (out / "README.md").read_text()
    assert "Card of the base" not in card and "configuration of the run" in card.lower()
    assert "is missing" in card and "step 20" in card and "Trained by" not in card
    assert "has no config.json of a run" in capsys.readouterr().err


def _card(workdir, target):
    return (run(workdir, target) / "README.md").read_text()


def test_the_card_asks_what_the_run_asked(tmp_path, workdir):
    assert "    {query}\n" in _card(workdir, tmp_path / "unknown")
    (workdir / "rollouts.jsonl").write_text('{"step": 1}\n{"queries": ["left heel", "knee"]}\n')
    assert "    left heel\n" in _card(workdir, tmp_path / "logged")
    lines = [{"split": "test", "query": "no"}, {"split": "train", "query": "nodule", "source": "x"}]
    manifest = tmp_path / "data" / "manifest.jsonl"
    manifest.parent.mkdir()
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = json.loads((workdir / "config.json").read_text())
    content["data"]["manifest"] = str(manifest.parent)
    (workdir / "config.json").write_text(json.dumps(content))
    card = _card(workdir, tmp_path / "known")
    assert "    nodule\n" in card and "skin lesion" not in card


def test_the_papers_template_asks_in_the_words_of_the_source(tmp_path, workdir):
    content = json.loads((workdir / "config.json").read_text())
    line = {"split": "train", "query": "thyroid nodule", "source": "tn3k"}
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    content["data"] |= {"manifest": str(tmp_path / "m.jsonl"), "template": "medloc"}
    (workdir / "config.json").write_text(json.dumps(content))
    assert prompts.MEDLOC_PROMPTS["tn3k"].splitlines()[0] in _card(workdir, tmp_path / "out")


def test_what_is_missing_beside_the_weights_is_told(tmp_path, capsys):
    random_folders.write(tmp_path / "bare", TINY)
    run(tmp_path / "bare", tmp_path / "orbax")
    err = capsys.readouterr().err
    assert "warning" in err and "has no tokenizer.json" in err
    assert "`medloc predict`" in err and "has no preprocessor_config.json" in err
    run(tmp_path / "orbax", tmp_path / "back")
    assert "back has no tokenizer.json" in capsys.readouterr().err


def test_a_whole_folder_brings_no_warning(tmp_path, published, workdir, capsys):
    run(published, tmp_path / "orbax")
    run(workdir, tmp_path / "out")
    assert "warning" not in capsys.readouterr().err


def test_an_interrupted_conversion_leaves_nothing(tmp_path, published, workdir, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("medloc_jax.convert.side_files.copy_published", interrupted)
    monkeypatch.setattr("medloc_jax.convert.side_files.write_for_run", interrupted)
    before = sorted(tmp_path.iterdir())
    for source in (published, workdir):
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "target")
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("direction", ["to orbax", "to hf"])
def test_ctrl_c_while_writing_leaves_nothing(tmp_path, published, workdir, monkeypatch, direction):
    source = published if direction == "to orbax" else workdir
    before = sorted(tmp_path.iterdir())
    times = []
    where = (hf_folder.Tensor, "read") if direction == "to orbax" else (hf_writer.Writer, "write")
    usual = getattr(*where)

    def counted(*args, **kwargs):
        times.append(time.monotonic())
        if len(times) == 20:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # orbax's main thread looks ten times a second
        return usual(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*where, counted)
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "target")
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(times) <= 21 and sorted(tmp_path.iterdir()) == before
    run(source, tmp_path / "target")


_SLOW = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from medloc_jax.cli import main
    from medloc_jax.convert import hf_folder

    usual, count = hf_folder.Tensor.read, 0

    def slow(*args):
        global count
        count += 1
        if count == int(sys.argv[1]):
            print("WRITING", flush=True)
        time.sleep(0.1)
        return usual(*args)

    hf_folder.Tensor.read = slow
    sys.exit(main.main(sys.argv[2:]))
"""


@pytest.mark.faults
def test_a_process_stopped_by_ctrl_c_can_be_started_again(tmp_path, published):
    flags = [f"--source={published}", f"--target={tmp_path / 'target'}"]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_SLOW), "30", "convert", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    assert any("WRITING" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "medloc convert: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]
    assert main.main(["convert", *flags]) == 0


@pytest.mark.faults
def test_ctrl_c_while_jax_is_imported_is_not_lost(tmp_path, published):
    flags = [f"--source={published}", f"--target={tmp_path / 'target'}"]
    program = """
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)

        class Finder:
            def find_spec(self, name, *_):
                if name == "jax":
                    print("IMPORTING", flush=True)
                    try:
                        signal.raise_signal(signal.SIGINT)
                    except KeyboardInterrupt:
                        pass  # as a callback of the garbage collector would lose it

        sys.meta_path.insert(0, Finder())
        from medloc_jax.cli import main
        sys.exit(main.main(sys.argv[1:]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), "convert", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert (done.returncode, done.stderr) == (130, "medloc convert: interrupted\n")
    assert "IMPORTING" in done.stdout and not (tmp_path / "target").exists()


def test_a_truncated_source_leaves_nothing(tmp_path, published):
    file = next(published.glob("*.safetensors"))
    with open(file, "r+b") as shard:
        shard.truncate(file.stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"{file} is truncated"):
        run(published, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_a_damaged_checkpoint_leaves_nothing(tmp_path, published):
    orbax = run(published, tmp_path / "orbax")
    for file in (orbax / "checkpoints" / "0" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be read|can be read"):
        run(orbax, tmp_path / "target")
    assert not (tmp_path / "target").exists() and not list(tmp_path.glob("*.partial"))


def test_a_changed_byte_of_a_converted_folder_is_noticed(tmp_path, published):
    orbax = run(published, tmp_path / "orbax")
    files = (orbax / "checkpoints" / "0" / "params" / "ocdbt.process_0" / "d").iterdir()
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read .*: copy the checkpoint again"):
        run(orbax, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_source_and_target_lie_apart(tmp_path, published, workdir):
    (tmp_path / "link").symlink_to(published)
    for source, target, message in [
        (published, published / "orbax", "lies inside the source"),
        (published, published, "is the source itself"),
        (tmp_path / "link", published / "x" / "y", "lies inside the source"),
        (workdir / "checkpoints" / "10", workdir, "lies inside the target"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(source, target)


def test_a_full_target_and_a_full_disk_are_refused_first(tmp_path, published, monkeypatch):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("x")
    with pytest.raises(ValueError, match="target is not empty"):
        run(published, tmp_path / "target")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"needs 0\.1 GB, the disk has 0\.0 GB left: make room"):
        run(published, tmp_path / "other")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--source and --target are missing: `medloc convert --help`"),
        (["--source=x"], "--target is missing"),
        (["--source=x", "--target=y", "z"], "'z' is not understood"),
        (["--source=x", "--targt=y"], "unknown flag --targt: did you mean --target"),
        (["--source=x", "--target=y", "--colour=red"], "unknown flag --colour"),
        (["--source=x", "--target=y", "--verify=perhaps"], "perhaps"),
        (["--source=/nowhere", "--target=y"], "--source=/nowhere: there is no such folder"),
        (["--source=.", "--target=y", "--base=/nowhere"], "--base=/nowhere: there is no such"),
        (["--source=.", "--target=y", "--dtype=int8"], "--dtype=int8 is none of keep, float32"),
        (["--source=medloc_jax", "--target=y"], "holds neither safetensors files nor a checkpoint"),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(argv, message):
    with pytest.raises(ValueError, match=message) as error:
        convert.main(argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argv", [["--help"], ["--source=x", "-h"], ["--colour", "--help", "y"]])
def test_help_is_told_wherever_it_stands(argv, capsys):
    assert convert.main(argv) == 0
    out = capsys.readouterr().out
    assert "--source=DIR" in out and "--max_shard_size (5GB):" in out


def test_the_dtypes_that_help_names_are_those_that_are_known():
    assert set(convert.DTYPES) == {"keep", *(kind.name for kind in hf_folder.DTYPES.values())}


def test_flags_of_the_other_direction_are_refused(tmp_path, published, workdir):
    with pytest.raises(ValueError, match="--base is for the other direction"):
        run(published, tmp_path / "x", f"--base={published}")
    with pytest.raises(ValueError, match="max_shard_size 'huge' is no size"):
        run(workdir, tmp_path / "x", "--max_shard_size=huge")
    (published / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        run(published, tmp_path / "x")


def test_the_verb_is_there(tmp_path, published):
    argv = ["convert", f"--source={published}", f"--target={tmp_path / 'orbax'}"]
    assert main.main(argv) == 0
    assert main.main(argv) == 2  # now it is not empty


def test_the_published_tokenizer_goes_there_and_back(tmp_path):
    if not (SHARED / "processor").exists():
        pytest.skip(f"{SHARED / 'processor'} is absent")
    # The real vocabulary on a model so narrow that it is quick.
    real = model_config.PRESETS["3b"]
    config = dataclasses.replace(
        TINY,
        text=dataclasses.replace(
            TINY.text,
            vocab_size=real.text.vocab_size,
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=1,
            mrope_section=(2, 3, 3),
        ),
        vision=dataclasses.replace(TINY.vision, out_hidden_size=32),
        **{
            field.name: getattr(real, field.name)
            for field in dataclasses.fields(real)
            if field.name.endswith("_token_id")
        },
    )
    source = tmp_path / "source"
    random_folders.write(source, config, random_folders.tensors(config, ml_dtypes.bfloat16))
    for path in (SHARED / "processor").iterdir():
        if path.is_file() and not path.name.startswith(("SOURCES", "refvals")):
            shutil.copyfile(path, source / path.name)
    back = run(run(source, tmp_path / "orbax"), tmp_path / "back")
    before, after = others(source), others(back)
    assert after.keys() == before.keys() and "vocab.json" in after
    assert {name for name in after if after[name] != before[name]} == {"config.json"}  # its dtype
    words = tokenizer.load(back, config)
    ids = words.encode_prompt("lesion at [12,345,6,78]", [2])
    assert ids == tokenizer.load(source, config).encode_prompt("lesion at [12,345,6,78]", [2])
    assert words.encode_completion("</answer>")[:3] == [522, 9217, 29]


@pytest.mark.parity
def test_verify(tmp_path, published, monkeypatch, capsys):
    pytest.importorskip("torch")
    orbax = run(published, tmp_path / "orbax", "--verify")
    assert "passed" in capsys.readouterr().out
    run(orbax, tmp_path / "back", "--verify", "--dtype=float16")
    assert "passed" in capsys.readouterr().out
    monkeypatch.setattr("medloc_jax.convert.verify.TOLERANCE", -1.0)
    argv = [f"--source={orbax}", f"--target={tmp_path / 'again'}", "--verify"]
    assert convert.main(argv) == 1
    assert "FAILED" in capsys.readouterr().out
