"""The program that most LoRA guides teach, with transformers' own Trainer: only the import line of LoRA changed.

    python examples/gpt2_trainer.py --data my_texts.txt

Each checkpoint is the adapter alone, a few MB, in PEFT's format.
"""

import argparse

from datasets import load_dataset
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, GPT2LMHeadModel, Trainer, TrainingArguments

from lorafit import LoraConfig, get_peft_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="gpt2", help="hub id or directory of a GPT-2 model")
parser.add_argument("--data", required=True, help="a text file, one example a line")
parser.add_argument("--output-dir", default="gpt2-lora")
arguments = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(arguments.model)
tokenizer.pad_token = tokenizer.eos_token
texts = load_dataset("text", data_files=arguments.data, split="train").filter(lambda row: row["text"].strip())
rows = texts.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=256), batched=True)

model = GPT2LMHeadModel.from_pretrained(arguments.model)
config = LoraConfig(r=8, lora_alpha=32, target_modules=["c_attn"], lora_dropout=0.1, bias="none")
model = get_peft_model(model, config)
model.print_trainable_parameters()

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=arguments.output_dir,
        per_device_train_batch_size=4,
        num_train_epochs=3,
        save_steps=500,
        logging_steps=100,
        report_to="none",
    ),
    train_dataset=rows.remove_columns(["text"]),
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
model.save_pretrained(arguments.output_dir)
