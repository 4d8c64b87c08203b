"""Chat templates in Go's syntax: rendered by Go itself where it is installed, and by the exact text everywhere."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from chat_templates import CHATML, LLAMA3
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorafit.data import Template
from lorafit.data.template import PLAIN
from lorafit.errors import ModelError
from lorafit.export import Options, export
from lorafit.export._go_template import Turns, turns_of

QWEN25 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}" + CHATML
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if loop.last and system is defined else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML, "qwen2.5": QWEN25, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "plain": PLAIN,
    "curly": "{% for m in messages %}{{ '{' + '{' + m.role + '}' + '} ' + m.content + ' ' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '{' + '{assistant}' + '} ' }}{% endif %}",
}  # fmt: skip
CONVERSATIONS = [
    ["Hi"],
    ["What is 2 + 2?", "It is 4.", "And 3 + 3?"],
    ["Hi", "Hello {{ .System }}", "a < b && \"c\"", "東京\n\n🙂", "Bye"],
]  # fmt: skip
PROGRAM = """package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
type Case struct { Template string; Conversations [][]*Message }
func main() {
	var cases []Case
	json.NewDecoder(os.Stdin).Decode(&cases)
	var found [][]string
	for _, c := range cases {
		t := template.Must(template.New("").Option("missingkey=zero").Parse(c.Template))
		var texts []string
		for _, messages := range c.Conversations {
			system := ""
			for _, m := range messages { if m.Role == "system" { system = m.Content } }
			var b = new(writer)
			values := map[string]any{"System": system, "Messages": messages, "Response": ""}
			if err := t.Execute(b, values); err != nil { panic(err) }
			texts = append(texts, b.text)
		}
		found = append(found, texts)
	}
	json.NewEncoder(os.Stdout).Encode(found)
}
type writer struct { text string }
func (w *writer) Write(p []byte) (int, error) { w.text += string(p); return len(p), nil }
"""


def with_template(source: str) -> Template:
    core = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return Template(tokenizer, source)


def conversation(contents: list[str], system: str | None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[index % 2], "content": text} for index, text in enumerate(contents)]


def test_pieces_are_the_templates_own():
    assert turns_of(with_template(GEMMA), "<s>") == Turns(
        start="<start_of_turn>user\n",
        answer="<end_of_turn>\n<start_of_turn>model\n",
        question="<end_of_turn>\n<start_of_turn>user\n",
        opening="<end_of_turn>\n<start_of_turn>model\n",
        before_system="<start_of_turn>user\n",
        after_system="\n\n",
    )
    assert turns_of(with_template(MISTRAL), "").before_system == "<s>[INST] "
    assert turns_of(with_template(QWEN25), "").start == (
        "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\n"
    )


def test_the_text_for_chatml():
    assert turns_of(with_template(CHATML), "").go() == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ else }}"
        "<|im_start|>user\n{{ end }}{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "user" }}{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}<|im_end|>\n<|im_start|>user\n'
        "{{ end }}{{ end }}{{ end }}"
    )


@pytest.mark.skipif(shutil.which("go") is None, reason="no Go toolchain here (Debian: golang-go)")
def test_go_renders_what_the_template_renders(tmp_path: Path):
    """Ollama's way: Go's text/template over `.System` and `.Messages`."""
    (tmp_path / "main.go").write_text(PROGRAM)
    cases, expected = [], []
    for name, source in TEMPLATES.items():
        template = with_template(source)
        bos = "<s>" if name in ("llama3", "gemma") else ""
        chats = [conversation(contents, system) for contents in CONVERSATIONS for system in (None, "Be brief.")]
        cases.append({"Template": turns_of(template, bos).go(), "Conversations": chats})
        expected.append([template.render(chat, generation_prompt=True).removeprefix(bos) for chat in chats])
    environment = {"PATH": "/usr/bin:/bin:/usr/local/go/bin", "HOME": str(tmp_path), "GOFLAGS": "-mod=mod"}
    done = subprocess.run(
        [shutil.which("go"), "run", "main.go"], input=json.dumps(cases), cwd=tmp_path, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    "source, reason",
    [
        (CHATML.replace("m.content", "(m.content + m.content)"), "changes messages"),
        (CHATML.replace("m.role + '\n'", "m.role + loop.index|string + '\n'"), "depends on more than its turn"),
    ],
)
def test_what_is_not_taken_in_turns_is_refused(source: str, reason: str):
    with pytest.raises(ModelError, match=rf"Go's syntax for Ollama: .*{reason}.* Take --to gguf"):
        turns_of(with_template(source), "")


@pytest.mark.parametrize(
    "kind, source, number_format",
    [("qwen3", CHATML, "q8_0"), ("llama3", LLAMA3, "f16"), ("gemma3", GEMMA, "bf16"), ("mistral", MISTRAL, "f32")],
)
def test_the_modelfile_beside_the_gguf(make_run, tmp_path: Path, kind: str, source: str, number_format: str):
    run = make_run(kind, speaks=True, template=source, target_modules="all-linear")
    exported = export(run, "ollama", tmp_path / "out", Options(number_format=number_format))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]
    parity = exported.parity
    assert parity.equal_greedy and parity.equal_greedy > 0.8 and parity.mean < parity.training / 10
    tokenizer, template = run.load_tokenizer()
    adds_bos = kind != "qwen3"
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert f'\nTEMPLATE """{turns_of(template, "<s>" if adds_bos else "").go()}"""\n' in text
    assert "\nFROM ./model.gguf\n" in text and ("<s>" in text) is False
    assert f"PARAMETER stop {json.dumps(tokenizer.eos_token)}\n" in text
    assert exported.notes == [
        f"Run it with: ollama create {kind}-run -f {tmp_path}/out/Modelfile && ollama run {kind}-run"
    ]


def test_a_template_of_another_kind_is_refused_before_any_work(make_run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("lorafit.run.Run.load_model", lambda *_, **__: pytest.fail("work has begun"))
    run = make_run("qwen3", speaks=True, template=CHATML.replace("m.content", "(m.content + m.content)"))
    with pytest.raises(ModelError, match=r"Go's syntax for Ollama: it changes messages"):
        export(run, "ollama", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
