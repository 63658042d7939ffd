"""A run's config.yaml, read back: report, export and resuming see the recipe that was trained."""

import json

import pytest
import yaml

from amd_plugin import recipe
from amd_plugin.config import RecipeConfig
from amd_plugin.tasks import task_of


@pytest.mark.parametrize("name", list(recipe.shipped()))
def test_what_a_run_writes_is_the_recipe_and_its_task(name, plugins, tmp_path):
    trained = recipe.load(name, plugins)
    (tmp_path / "config.yaml").write_text(trained.as_yaml())
    again = recipe.load(str(tmp_path / "config.yaml"), plugins)
    assert again.config == trained.config and again.as_yaml() == trained.as_yaml()
    as_json = json.loads(json.dumps(yaml.safe_load(trained.as_yaml())))
    config = RecipeConfig.model_validate_json(json.dumps(as_json), strict=True)
    assert task_of(config.data, 0).made_of == task_of(trained.config.data, 0).made_of
