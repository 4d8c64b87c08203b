"""`lorafit import-config` from the command line."""

from command_lines import run, run_json

from lorafit.recipe import load_recipe

TEXT = "base_model: org/base\nadapter: lora\nlora_r: 8\ndatasets: [{path: a.jsonl}]\nflash_attention: true\n"


def test_the_recipe_goes_to_stdout_and_the_words_to_stderr(tmp_path, capsys):
    (tmp_path / "theirs.yml").write_text(TEXT)
    recipe, words = run(capsys, "import-config", tmp_path / "theirs.yml")
    (tmp_path / "ours.yaml").write_text(recipe)
    assert load_recipe(tmp_path / "ours.yaml").lora.r == 8
    words = " ".join(words.split())
    assert "flash_attention = true: the attention is chosen for the machine" in words
    assert "data.max_length = 512: not given: the default of axolotl" in words
    assert "Empty, or what lorafit does in any case: adapter" in words


def test_a_file_is_written_and_never_over_another(tmp_path, capsys):
    (tmp_path / "theirs.yml").write_text(TEXT)
    result = run_json(capsys, "import-config", tmp_path / "theirs.yml", "--output", tmp_path / "ours.yaml")
    assert result["recipe"]["lora.r"] == 8 and result["peer"] == "axolotl"
    assert [key["key"] for key in result["no_counterpart"]] == ["flash_attention"]
    assert load_recipe(tmp_path / "ours.yaml").model.name == "org/base"
    again = run_json(capsys, "import-config", tmp_path / "theirs.yml", "--output", tmp_path / "ours.yaml", code=2)
    assert "is not overwritten" in again["error"]
