"""A text-to-image LoRA beside PEFT + diffusers' training step: the same pipeline, pictures, rank, batch; in turns.

    pip install -e '.[test,bench]'
    python benchmarks/diffusion.py

The pipeline has Stable Diffusion 1.5's shape at a quarter of its widths and a half of its resolution, with random
weights; heads are fewer, not narrower. So VAE, text encoder and UNet have the shares of a step's FLOPs that they have
there, which is counted and reported for both. The peer's step is that of diffusers' own LoRA example: in each
step it encodes the pictures and captions, adds noise, and takes the whole batch at once. lorafit encodes once (told
apart, and in its peak memory) and computes in micro-batches of its plan. Steps a second after a warm-up, of the clock
and of processor time, which is what ratios are made of: other programs keep it busy less. Peak memory is the process's.
Each system runs in a process of its own.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import machine, write

SYSTEMS = ("lorafit", "peft-diffusers")
RANK, ALPHA, TARGETS, LEARNING_RATE = 16, 16, ["to_q", "to_k", "to_v", "to_out.0"], 1e-4
WARM_UP = 2  # steps
NARROWER = 4  # than Stable Diffusion 1.5
SHAPED_AT = 512  # pixels a side: what Stable Diffusion 1.5 is trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--steps", type=int, default=8, help="measured ones")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "diffusion.json")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train = {"lorafit": lorafit, "peft-diffusers": peft_diffusers}[arguments.worker]
        figures = train(arguments)
        figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print("\n" + json.dumps(figures))
    else:
        compare(arguments)


def compare(arguments) -> None:
    import diffusers
    import peft

    rounds: dict[str, list[dict]] = {system: [] for system in SYSTEMS}
    with tempfile.TemporaryDirectory() as folder:
        parts = make_pipeline(Path(folder) / "base")
        make_pictures(Path(folder) / "pictures", 2 * arguments.batch + 2, arguments.resolution)
        for _ in range(arguments.rounds):
            for system in SYSTEMS:
                rounds[system].append(worker(system, arguments, folder))
                figures = rounds[system][-1]
                print(f"{system}: {figures['steps_per_second']:.3f} steps/s, {figures['peak_bytes'] / 1e9:.2f} GB")
    pairs = list(zip(rounds["lorafit"], rounds["peft-diffusers"], strict=True))
    speed = "steps_per_processor_second"
    faster = [ours[speed] / theirs[speed] for ours, theirs in pairs]
    memory = [ours["peak_bytes"] / theirs["peak_bytes"] for ours, theirs in pairs]
    report = {
        "machine": {**machine(), "diffusers": diffusers.__version__, "peft": peft.__version__},
        "settings": {
            "resolution": arguments.resolution, "pictures_a_step": arguments.batch, "steps": arguments.steps, "r": RANK,
            "target_modules": TARGETS, "dtype": "float32",
        },
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "share_of_flops": {
            "here": share_of_flops(NARROWER, arguments.resolution),
            "Stable Diffusion 1.5": share_of_flops(1, SHAPED_AT),
        },
        "steps_per_second": {name: statistics.median(one["steps_per_second"] for one in found)
                             for name, found in rounds.items()},
        "peak_gb": {name: max(one["peak_bytes"] for one in found) / 1e9 for name, found in rounds.items()},
        "lorafit_is_faster_by": [min(faster), statistics.median(faster), max(faster)],
        "share_of_memory": [min(memory), statistics.median(memory), max(memory)],
        "rounds": rounds,
    }  # fmt: skip
    write(report, arguments.output)
    print(f"faster by {statistics.median(faster):.2f}, {statistics.median(memory):.2f} of the memory")


def components(narrower: int, vocabulary: int = 49408) -> dict[str, Any]:
    """Of Stable Diffusion 1.5, `narrower` by that factor."""
    import diffusers
    import transformers

    unet = diffusers.UNet2DConditionModel(
        sample_size=64, block_out_channels=[width // narrower for width in (320, 640, 1280, 1280)],
        cross_attention_dim=768 // narrower, norm_num_groups=8,
        attention_head_dim=8 // narrower,  # it means how many heads, which its authors say in a comment
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=[width // narrower for width in (128, 256, 512, 512)], layers_per_block=2, norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4,
    )  # fmt: skip
    width = 768 // narrower
    encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=12,
            num_attention_heads=12, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )  # fmt: skip
    return {"unet": unet, "vae": vae, "text_encoder": encoder}


def make_pipeline(folder: Path) -> dict[str, Any]:
    """Write one with random weights; its trained parts by name."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    tokens = [*map(chr, range(33, 127)), *(f"{chr(code)}</w>" for code in range(33, 127)), "<|startoftext|>",
              "<|endoftext|>"]  # fmt: skip
    tokenizer = transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77
    )
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts = components(NARROWER, len(tokens))
    diffusers.StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return parts


def share_of_flops(narrower: int, side: int) -> dict[str, float]:
    """Of a training step that encodes too: each component's, for a picture of `side` pixels."""
    import torch
    from peft import LoraConfig
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        parts = components(narrower)
        unet = parts["unet"].requires_grad_(False)
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS)))
        latents, hidden = torch.zeros(1, 4, side // 8, side // 8), torch.zeros(1, 77, 768 // narrower)
        steps = {
            "unet": lambda: unet(latents, torch.zeros(1), hidden, return_dict=False)[0].sum().backward(),
            "vae": lambda: parts["vae"].encode(torch.zeros(1, 3, side, side)),
            "text_encoder": lambda: parts["text_encoder"](torch.zeros(1, 77, dtype=torch.long)),
        }
        flops = {}
        for name, step in steps.items():
            with FlopCounterMode(display=False) as counted:
                step()
            flops[name] = counted.get_total_flops()
    return {name: round(one / sum(flops.values()), 3) for name, one in flops.items()}


def make_pictures(folder: Path, count: int, side: int) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(noise.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"picture number {i} of some noise")


def worker(system: str, arguments, folder: str) -> dict:
    """Run one system in a fresh process; its last line is its figures."""
    command = [sys.executable, __file__, "--worker", system, "--folder", folder]
    for name in ("resolution", "batch", "steps"):
        command += [f"--{name}", str(getattr(arguments, name))]
    environment = {**os.environ, "LORAFIT_CACHE": f"{folder}/cache-{time.monotonic_ns()}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{system} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def lorafit(arguments) -> dict:
    """`lorafit train`, without evaluations on the way; what is encoded beforehand is timed apart."""
    from transformers import TrainerCallback

    from lorafit.diffusion import task
    from lorafit.recipe import load_recipe
    from lorafit.train import train

    times: dict[str, float] = {}

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs) -> None:
            if state.global_step == WARM_UP:
                times.update(start=time.perf_counter(), cpu_start=time.process_time())

        def on_step_end(self, args, state, control, **kwargs) -> None:
            times.update(end=time.perf_counter(), cpu_end=time.process_time())

    own, encode = task.TextToImage.callbacks, task.encode

    def timed(*parts: Any) -> None:
        started = time.perf_counter()
        encode(*parts)
        times["encoding"] = time.perf_counter() - started

    task.encode = timed
    task.TextToImage.callbacks = lambda *parts: [*own(*parts), Clock()]
    steps = WARM_UP + arguments.steps
    recipe = load_recipe(
        sets=["task=text_to_image", f"model.name={arguments.folder}/base", "model.dtype=fp32", f"lora.r={RANK}",
              f"data.train_files={arguments.folder}/pictures", f"diffusion.resolution={arguments.resolution}",
              f"lora.lora_alpha={ALPHA}", f"train.per_device_train_batch_size={arguments.batch}",
              f"train.max_steps={steps}", f"train.eval_steps={steps}", f"train.learning_rate={LEARNING_RATE}",
              "train.lr_scheduler_type=constant_with_warmup", "evaluate.samples=0"],
        output_dir=f"{arguments.folder}/run-{time.monotonic_ns()}",
    )  # fmt: skip
    record = train(recipe, on_notice=lambda line: None).run.record
    return {
        "steps_per_second": arguments.steps / (times["end"] - times["start"]),
        "steps_per_processor_second": arguments.steps / (times["cpu_end"] - times["cpu_start"]),
        "encoding_seconds": times["encoding"],
        "planned_bytes": record["plan"]["predicted_peak_bytes"],
        "positions_at_once": record["plan"]["token_budget"],
    }


def peft_diffusers(arguments) -> dict:
    """The step of diffusers' example for LoRA."""
    import diffusers
    import numpy as np
    import torch
    from peft import LoraConfig
    from PIL import Image

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        arguments.folder / "base", safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    unet, vae, encoder, tokenizer = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    schedule = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    for part in (unet, vae, encoder):
        part.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=list(TARGETS)))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    files = sorted((arguments.folder / "pictures").glob("*.png"))
    order = np.random.default_rng(0)
    unet.train()
    started = cpu_started = 0.0
    for step in range(WARM_UP + arguments.steps):
        if step == WARM_UP:
            started, cpu_started = time.perf_counter(), time.process_time()
        chosen = [files[i] for i in order.choice(len(files), arguments.batch, replace=False)]
        side = arguments.resolution
        pixels = [np.asarray(Image.open(file).convert("RGB").resize((side, side))) for file in chosen]
        values = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        captions = [file.with_suffix(".txt").read_text() for file in chosen]
        tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        latents = vae.encode(values).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),))
        noisy = schedule.add_noise(latents, noise, timesteps)
        hidden = encoder(tokens.input_ids, return_dict=False)[0]
        predicted = unet(noisy, timesteps, hidden, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "steps_per_second": arguments.steps / (time.perf_counter() - started),
        "steps_per_processor_second": arguments.steps / (time.process_time() - cpu_started),
    }


if __name__ == "__main__":
    main()
