# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configurations for plans of the model that is smaller than tiny."""

import ast
import importlib.util

import small_runs

from medloc_jax.config import default_config


def config_of(preset, **changes):
    """The default configuration for a preset, with changes of "section.field"."""
    config = default_config()
    config.model.preset = str(preset)
    config.update_from_flattened_dict(changes)
    return config


def small_config(folder, **changes):
    """That of a run of seconds."""

    def value(given):
        return ast.literal_eval(given) if str(given).startswith("(") else given

    values = {name: value(given) for name, given in (small_runs.OVERRIDES | changes).items()}
    values["data.template"] = "box"
    return config_of(small_runs.write_preset(folder / "preset"), **values)


def load(path, *variant):
    """The configuration of an experiment file."""
    spec = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)
