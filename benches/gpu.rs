//! Training steps of a Mistral-7B shape on the GPU: time, memory, and where the time goes.
//!
//!     cargo bench --bench gpu -- [A|B|C]... [--steps N] [--layers N] [--rank N] [--dtype bf16|f32] [--tune]
//!
//! A is 2 texts of 2048 tokens, B 8 of 512, C 1 of 8192. Random weights, linears in NF4 with double quantisation, LoRA on
//! all 7 linears, 8-bit AdamW; every token has a target. The time of a step is the median of wall clock over N steps after
//! three that are not counted; the table is one more step with an event before and after each operation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Instant;

use unslothify::engine::{Batch, Engine, LoraConfig, MODULES, Mode};
use unslothify::kernels::cuda::Dtype;
use unslothify::kernels::{Backend, Cuda};
use unslothify::optim::{AdamW8bit, Settings};
use unslothify::philox::Philox;
use unslothify::weights::ModelConfig;

const VOCABULARY: usize = 32768;
const UNCOUNTED: usize = 3;

struct Workload {
    name: char,
    texts: usize,
    length: usize,
}

const WORKLOADS: [Workload; 3] = [
    Workload { name: 'A', texts: 2, length: 2048 },
    Workload { name: 'B', texts: 8, length: 512 },
    Workload { name: 'C', texts: 1, length: 8192 },
];

struct Arguments {
    workloads: Vec<char>,
    steps: usize,
    layers: usize,
    rank: usize,
    dtype: Option<Dtype>,
    is_tuned: bool,
}

fn arguments() -> Arguments {
    let mut given = Arguments { workloads: Vec::new(), steps: 10, layers: 32, rank: 16, dtype: None, is_tuned: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number after the option");
        match word.as_str() {
            "A" | "B" | "C" => given.workloads.extend(word.chars()),
            "--steps" => given.steps = number(),
            "--layers" => given.layers = number(),
            "--rank" => given.rank = number(),
            "--tune" => given.is_tuned = true,
            "--dtype" => {
                given.dtype = match words.next().as_deref() {
                    Some("bf16") => Some(Dtype::Bf16),
                    Some("f32") => Some(Dtype::F32),
                    other => panic!("--dtype {other:?}: wanted bf16 or f32"),
                }
            }
            // cargo bench adds this one
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    if given.workloads.is_empty() {
        given.workloads = vec!['A', 'B', 'C'];
    }
    given
}

fn config(layers: usize) -> ModelConfig {
    let text = format!(
        r#"{{"architectures":["MistralForCausalLM"],"model_type":"mistral","vocab_size":{VOCABULARY},"hidden_size":4096,
"intermediate_size":14336,"num_hidden_layers":{layers},"num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,
"max_position_embeddings":32768,"rms_norm_eps":1e-5,"rope_theta":1000000.0,"sliding_window":null,
"tie_word_embeddings":false,"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"torch_dtype":"bfloat16"}}"#
    );
    ModelConfig::from_json(&text, "random").unwrap()
}

fn main() {
    let given = arguments();
    if !Cuda::is_driver_there() {
        println!("not run: there is no NVIDIA driver on this machine");
        return;
    }
    for workload in WORKLOADS.iter().filter(|workload| given.workloads.contains(&workload.name)) {
        run(workload, &given);
    }
}

fn run(workload: &Workload, given: &Arguments) {
    let backend = Cuda::new(0, given.dtype).unwrap().with_tuning(given.is_tuned);
    let device = backend.device().clone();
    let dtype = backend.dtype().name();
    device.reset_peak().unwrap();
    let started = Instant::now();
    let mut engine = Engine::random(backend, config(given.layers), 1).unwrap();
    engine
        .add_lora(&LoraConfig {
            r: given.rank,
            lora_alpha: given.rank as f64,
            target_modules: MODULES.iter().map(|module| (*module).to_owned()).collect(),
            layers_to_transform: None,
            use_rslora: false,
            seed: 1,
        })
        .unwrap();
    let len = engine.backend().full_len(engine.flat().unwrap().params);
    let segments = engine.flat().unwrap().segments.to_vec();
    let mut optimizer = AdamW8bit::new(engine.backend(), Settings::default(), &segments, len).unwrap();
    device.wait().unwrap();
    println!(
        "{}: {} x {} tokens, {} layers, r={}, {dtype}, tuned: {}; base {:.2} GB in {:.1} s",
        workload.name,
        workload.texts,
        workload.length,
        given.layers,
        given.rank,
        given.is_tuned,
        engine.weight_bytes() as f64 / 1e9,
        started.elapsed().as_secs_f64()
    );

    let tokens = workload.texts * workload.length;
    let random = Philox::new(7, 0);
    let ids: Vec<u32> = (0..tokens as u64).map(|i| (random.uniform_at(i) * VOCABULARY as f64) as u32).collect();
    let targets: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let borders: Vec<u32> = (0..=workload.texts).map(|text| (text * workload.length) as u32).collect();
    let mut step = || {
        let batch = Batch { ids: &ids, cu_seqlens: &borders, targets: &targets };
        let loss = engine.forward(&batch, Mode::Train, tokens as f64).unwrap();
        engine.backward(1.0).unwrap();
        let flat = engine.flat_mut().unwrap();
        let norm = flat.backend.sum_squares(flat.gradients).unwrap().sqrt();
        let scale = (1.0 / (norm + 1e-6)).min(1.0);
        optimizer.step(flat.backend, flat.params, flat.gradients, 1e-4, scale).unwrap();
        engine.zero_grad().unwrap();
        device.wait().unwrap();
        (loss, norm)
    };
    let mut times = Vec::new();
    for index in 0..UNCOUNTED + given.steps {
        let start = Instant::now();
        let (loss, norm) = step();
        let time = start.elapsed().as_secs_f64() * 1e3;
        println!("  step {index}: {time:.1} ms, loss {loss:.4}, gradient norm {norm:.4}");
        if index >= UNCOUNTED {
            times.push(time);
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let (free, total) = device.memory().unwrap();
    println!(
        "  {}: median {median:.1} ms/step, {:.0} tokens/s; peak {:.2} GB of tensors, {:.2} GB taken on the card",
        workload.name,
        tokens as f64 / median * 1e3,
        device.peak_bytes().unwrap() as f64 / 1e9,
        (total - free) as f64 / 1e9
    );
    device.measure(true);
    step();
    let rows = device.measured().unwrap();
    device.measure(false);
    let sum: f64 = rows.iter().map(|row| row.1).sum();
    println!("  {:<32} {:>9} {:>7} {:>6}", "operation", "ms", "calls", "%");
    for (name, time, calls) in &rows {
        println!("  {name:<32} {time:>9.3} {calls:>7} {:>6.1}", 100.0 * time / sum);
    }
    println!("  {:<32} {sum:>9.3}", "sum");
}
