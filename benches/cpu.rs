//! Trained tokens per second and peak memory on the CPU, against transformers + PEFT on the same checkpoint.
//!
//!     cargo bench --bench cpu                          # ours alone
//!     cargo bench --bench cpu -- PYTHON [8m|135m]      # and the rival, alternately; PYTHON has torch and peft
//!
//! f32, LoRA r=16 on the 7 linears, AdamW, clipping; texts of equal length, so the rival pads nothing. Every figure is
//! a process of its own: the median over its steps, then over rounds. The rival takes the better of 1 and 2 threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use unslothify::engine::{Batch, Engine, LoadOptions, LoraConfig, MODULES, Mode};
use unslothify::kernels::{AdamWStep, Backend, Cpu};
use unslothify::philox::Philox;
use unslothify::weights::Checkpoint;

struct Shape {
    name: &'static str,
    config: &'static str,
    vocabulary: usize,
    hidden: usize,
    wide: usize,
    layers: usize,
    queries: usize,
    keys: usize,
    tied: bool,
}

/// 8.0 M parameters.
const SMALL: Shape = Shape {
    name: "8m",
    config: r#"{"architectures":["MistralForCausalLM"],"model_type":"mistral","vocab_size":4096,"hidden_size":256,
"intermediate_size":704,"num_hidden_layers":8,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":32,
"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"sliding_window":null,
"tie_word_embeddings":false,"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"torch_dtype":"bfloat16"}"#,
    vocabulary: 4096,
    hidden: 256,
    wide: 704,
    layers: 8,
    queries: 256,
    keys: 128,
    tied: false,
};

/// SmolLM2-135M's shape.
const SMOL: Shape = Shape {
    name: "135m",
    config: r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":49152,"hidden_size":576,
"intermediate_size":1536,"num_hidden_layers":30,"num_attention_heads":9,"num_key_value_heads":3,"head_dim":64,
"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,
"tie_word_embeddings":true,"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"torch_dtype":"bfloat16"}"#,
    vocabulary: 49152,
    hidden: 576,
    wide: 1536,
    layers: 30,
    queries: 576,
    keys: 192,
    tied: true,
};

/// Texts and their length.
const BATCHES: [(usize, usize); 3] = [(8, 20), (4, 128), (2, 512)];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == "one") {
        let number = |at: usize| args[at].parse::<usize>().expect("a number");
        println!("{}", one(Path::new(&args[1]), number(2), number(3), number(4), number(5)));
        return;
    }
    let (names, python): (Vec<&String>, Vec<&String>) =
        args.iter().partition(|arg| ["8m", "135m"].contains(&arg.as_str()));
    println!("| model | texts | ours tok/s | peft tok/s (threads) | ratio | ours peak MB | peft peak MB | ratio |");
    println!("|---|---|---|---|---|---|---|---|");
    for shape in [&SMALL, &SMOL] {
        if !names.is_empty() && !names.iter().any(|name| *name == shape.name) {
            continue;
        }
        let folder = checkpoint(shape);
        for (rows, length) in BATCHES {
            compare(shape, &folder, rows, length, python.first().map(|path| path.as_str()));
        }
    }
}

/// Runs both sides alternately and prints one row of the table.
fn compare(shape: &Shape, folder: &Path, rows: usize, length: usize, python: Option<&str>) {
    let tokens = rows * length;
    let big = shape.layers > 8;
    let (steps, rival_steps, rounds) = match (big, tokens) {
        (false, ..=999) => (20, 10, 5),
        (false, _) => (8, 5, 5),
        (true, ..=999) => (5, 4, 3),
        (true, _) => (3, 2, 2),
    };
    let itself = std::env::current_exe().unwrap();
    let common = |threads: usize, steps: usize| {
        [folder.display().to_string(), rows.to_string(), length.to_string(), threads.to_string(), steps.to_string()]
    };
    let (mut ours, mut theirs) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..rounds {
        ours.push(figures(Command::new(&itself).arg("one").args(common(2, steps))));
        for (threads, list) in [1, 2].into_iter().zip(&mut theirs) {
            if let Some(python) = python {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/cpu_peft.py");
                list.push(figures(Command::new(python).arg(script).args(common(threads, rival_steps))));
            }
        }
    }
    let (speed, peak) = medians(&ours);
    print!("| {} | {rows}x{length} | {speed:.0} ", shape.name);
    if python.is_none() {
        println!("| | | {:.0} | | |", peak / 1e6);
        return;
    }
    let rivals = theirs.map(|list| medians(&list));
    let (threads, (rival_speed, rival_peak)) = if rivals[0].0 > rivals[1].0 { (1, rivals[0]) } else { (2, rivals[1]) };
    println!(
        "| {rival_speed:.0} ({threads}) | {:.2} | {:.0} | {:.0} | {:.2} |",
        speed / rival_speed,
        peak / 1e6,
        rival_peak / 1e6,
        peak / rival_peak
    );
}

/// Runs a command that prints `tokens_per_second` and `peak_bytes` as one JSON line.
fn figures(command: &mut Command) -> (f64, f64) {
    let output = command.output().expect("the command starts");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {complained}");
    let line = said.lines().last().expect("a line of JSON");
    let facts: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
    (facts["tokens_per_second"].as_f64().unwrap(), facts["peak_bytes"].as_f64().unwrap())
}

fn medians(list: &[(f64, f64)]) -> (f64, f64) {
    (median(list.iter().map(|figure| figure.0).collect()), median(list.iter().map(|figure| figure.1).collect()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Trains `steps` steps after two to warm up, and returns a JSON line.
fn one(folder: &Path, rows: usize, length: usize, threads: usize, steps: usize) -> String {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut engine = Engine::load(Cpu::new(Some(threads)), &checkpoint, &LoadOptions::default()).unwrap();
    drop(checkpoint); // the file is not needed any more, as after `Model::from_pretrained`
    engine
        .add_lora(&LoraConfig {
            r: 16,
            lora_alpha: 16.0,
            target_modules: MODULES.iter().map(|module| (*module).to_owned()).collect(),
            layers_to_transform: None,
            use_rslora: false,
            seed: 0,
        })
        .unwrap();
    let vocabulary = engine.config().vocab_size;
    let random = Philox::new(0, 0);
    let ids: Vec<u32> =
        (0..rows * length).map(|i| 3 + (random.uniform_at(i as u64) * (vocabulary - 3) as f64) as u32).collect();
    let targets: Vec<i32> =
        (0..ids.len()).map(|i| if (i + 1) % length == 0 { -100 } else { ids[i + 1] as i32 }).collect();
    let cu_seqlens: Vec<u32> = (0..=rows).map(|row| (row * length) as u32).collect();
    let batch = Batch { ids: &ids, cu_seqlens: &cu_seqlens, targets: &targets };
    let len = engine.backend().full_len(engine.flat().unwrap().params);
    let (mut m, mut v) = (engine.backend().full(len).unwrap(), engine.backend().full(len).unwrap());
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for step in 0..steps + 2 {
        let start = Instant::now();
        losses.push(engine.forward(&batch, Mode::Train, (rows * (length - 1)) as f64).unwrap());
        engine.backward(1.0).unwrap();
        let flat = engine.flat_mut().unwrap();
        let norm = flat.backend.sum_squares(flat.gradients).unwrap().sqrt();
        let constants = AdamWStep {
            lr: 2e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            step: step as u64 + 1,
            gradient_scale: (1.0 / (norm + 1e-6)).min(1.0),
        };
        flat.backend.adamw(flat.params, flat.gradients, &mut m, &mut v, flat.segments, &constants).unwrap();
        engine.zero_grad().unwrap();
        times.push(start.elapsed().as_secs_f64());
    }
    let seconds = median(times[2..].to_vec());
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    let peak: f64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    serde_json::json!({
        "seconds": seconds, "tokens_per_second": (rows * length) as f64 / seconds, "peak_bytes": peak * 1024.0,
        "first_loss": losses[0], "last_loss": losses[losses.len() - 1],
    })
    .to_string()
}

/// Writes a checkpoint of random bf16 weights once and returns its folder.
fn checkpoint(shape: &Shape) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", shape.name));
    let file = folder.join("model.safetensors");
    if file.exists() {
        return folder;
    }
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), shape.config).unwrap();
    let s = shape;
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![s.vocabulary, s.hidden]),
        ("model.norm.weight".into(), vec![s.hidden]),
    ];
    if !s.tied {
        tensors.push(("lm_head.weight".into(), vec![s.vocabulary, s.hidden]));
    }
    for layer in 0..s.layers {
        let named = [
            ("input_layernorm", vec![s.hidden]),
            ("post_attention_layernorm", vec![s.hidden]),
            ("self_attn.q_proj", vec![s.queries, s.hidden]),
            ("self_attn.k_proj", vec![s.keys, s.hidden]),
            ("self_attn.v_proj", vec![s.keys, s.hidden]),
            ("self_attn.o_proj", vec![s.hidden, s.queries]),
            ("mlp.gate_proj", vec![s.wide, s.hidden]),
            ("mlp.up_proj", vec![s.wide, s.hidden]),
            ("mlp.down_proj", vec![s.hidden, s.wide]),
        ];
        tensors.extend(named.map(|(name, dims)| (format!("model.layers.{layer}.{name}.weight"), dims)));
    }
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .enumerate()
        .map(|(stream, (name, dims))| {
            let random = Philox::new(1, stream as u64);
            let (centre, spread) = if dims.len() == 1 { (1.0, 0.0) } else { (0.0, 0.07) };
            let value = |i: u64| half::bf16::from_f64(centre + spread * (random.uniform_at(i) - 0.5));
            let values = (0..dims.iter().product::<usize>() as u64).flat_map(|i| value(i).to_le_bytes());
            (name, dims, values.collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, dims, data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, dims.clone(), data).unwrap();
        (name.as_str(), view)
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let partial = folder.join("model.partial");
    safetensors::serialize_to_file(views, Some(metadata), &partial).unwrap();
    std::fs::rename(partial, file).unwrap();
    folder
}
