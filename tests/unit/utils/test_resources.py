"""Recipes, sandbox files and people's own code are found by name, or refused in one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_tir.errors import ConfigError
from grpo_tir.utils import resources
from grpo_tir.utils.recipe import find_recipe


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packaged recipes of our own making, and an empty working folder beside them."""
    folder = tmp_path / "packaged"
    (folder / "ablations").mkdir(parents=True)
    for name in ("quickstart.yaml", "torl_7b.yaml", "ablations/c0.yaml", "reward.py"):
        (folder / name).write_text("mine = 'packaged'\n", encoding="utf-8")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(resources, "recipes_dir", lambda: folder)
    return folder


@pytest.mark.parametrize(
    "name", ["quickstart", "quickstart.yaml", "recipes/quickstart.yaml", "recipes/quickstart"]
)
def test_a_packaged_recipe_is_found_from_an_empty_folder(name: str, recipes: Path) -> None:
    assert find_recipe(name) == recipes / "quickstart.yaml"


def test_a_dot_in_a_recipes_name_is_no_suffix(recipes: Path) -> None:
    (recipes / "torl_1.5b.yaml").touch()
    assert find_recipe("torl_1.5b") == recipes / "torl_1.5b.yaml"


def test_ones_own_file_goes_before_the_packaged_one(recipes: Path) -> None:
    own = Path("recipes/quickstart.yaml")
    own.parent.mkdir()
    own.touch()
    assert find_recipe(own) == own


@pytest.mark.parametrize(("wrong", "near"), [("quickstrat", "quickstart"), ("recipes/torl_7.yaml", "torl_7b")])
def test_the_nearest_recipe_is_suggested(wrong: str, near: str, recipes: Path) -> None:
    with pytest.raises(ConfigError, match=f"no recipe at {wrong}; did you mean `{near}`"):
        find_recipe(wrong)


def test_an_unlike_name_gets_the_list(recipes: Path) -> None:
    with pytest.raises(ConfigError, match="packaged recipes: ablations/c0, quickstart, torl_7b"):
        find_recipe("/nowhere/zzz")


def test_a_checkout_has_its_folders_at_the_root(repository: Path) -> None:
    assert resources.recipes_dir() == repository / "recipes"
    assert resources.sandbox_dir() == repository / "sandbox"


def test_an_object_is_found_by_dotted_path() -> None:
    assert resources.load_object("grpo_tir.errors:ConfigError") is ConfigError
    assert resources.load_object("grpo_tir.errors.ConfigError") is ConfigError
    assert resources.load_object("grpo_tir.errors:ConfigError.exit_code") == 2


def test_a_file_is_run_once_and_its_classes_know_their_module(tmp_path: Path) -> None:
    """Dataclasses and pickle look the module of a class up by name."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Mine:\n    x: int = 3\n",
        encoding="utf-8",
    )
    first = resources.load_object(f"{path}:Mine")
    assert first().x == 3
    assert resources.load_object(f"{path}:Mine") is first


def test_two_files_of_one_name_do_not_collide(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "reward.py").write_text(f"value = '{name}'\n", encoding="utf-8")
    assert [resources.load_object(f"{tmp_path / name}/reward.py:value") for name in ("one", "two")] == [
        "one",
        "two",
    ]


def test_a_packaged_example_is_found_by_its_path_in_the_checkout(recipes: Path) -> None:
    assert resources.load_object("recipes/reward.py:mine") == "packaged"


def test_a_module_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_of_this_test.py").write_text("value = 5\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert resources.load_object("only_of_this_test:value") == 5


@pytest.mark.parametrize(
    ("content", "spec", "message"),
    [
        ("", "nothing", "is not a name: write `package.module:name` or `file.py:name`"),
        ("", "{file}", "is not a name"),
        ("", "{file}:", "is not a name"),
        ("", "absent.py:f", "there is no file absent.py"),
        ("", "absent_package.reward:f", "there is no module absent_package "),
        ("", "grpo_tir.absent:f", "there is no module grpo_tir.absent "),
        ("def reward(): ...", "{file}:rewards", "has no `rewards`; did you mean `reward`"),
        ("x = 1", "{file}:zzz", "has no `zzz`$"),
        ("import absent_package", "{file}:f", "failed: ModuleNotFoundError: No module named 'absent_package'"),
        ("def f(:", "{file}:f", "failed: SyntaxError: .*line 1"),
        ("1 / 0", "{file}:f", "failed: ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(content: str, spec: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refused:
        resources.load_object(spec.format(file=file))
    assert "\n" not in str(refused.value)
