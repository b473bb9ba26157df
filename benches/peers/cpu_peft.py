"""One figure of the CPU benchmark's rival: transformers + PEFT + torch, f32, on the checkpoint `benches/cpu.rs` wrote.

    python benches/peers/cpu_peft.py FOLDER ROWS LENGTH THREADS [STEPS]

Trains LoRA r=16 on the 7 linears with torch's AdamW and clipping, ROWS texts of LENGTH tokens a step, none padded.
Prints one JSON line: median seconds a step, trained tokens/s, peak resident memory of the process (VmHWM).
"""

import json
import os
import random
import statistics
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
folder, rows, length, threads = sys.argv[1], *map(int, sys.argv[2:5])
steps = int(sys.argv[5]) if len(sys.argv) > 5 else 8
os.environ["OMP_NUM_THREADS"] = str(threads)

import peft
import torch
import transformers

torch.set_num_threads(threads)
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = peft.get_peft_model(model, peft.LoraConfig(
    r=16, lora_alpha=16, lora_dropout=0.0, target_modules=linears, task_type="CAUSAL_LM"))
model.train()
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.1, foreach=True)
random.seed(0)
ids = torch.tensor([[random.randrange(3, model.config.vocab_size) for _ in range(length)] for _ in range(rows)])
times, losses = [], []
for step in range(steps + 2):
    start = time.perf_counter()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    times.append(time.perf_counter() - start)
seconds = statistics.median(times[2:])
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(json.dumps({
    "seconds": seconds, "tokens_per_second": rows * length / seconds, "peak_bytes": peak,
    "first_loss": losses[0], "last_loss": losses[-1],
    "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)}}))
