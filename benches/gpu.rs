//! Training steps of a Mistral-7B shape on the GPU: time, memory, and where the time goes.
//!
//!     cargo bench --bench gpu -- [A|B|C|D|E|decode|load]...
//!         [--memory lean|balanced|speed|7GB] [--steps N] [--layers N] [--rank N]
//!         [--dtype bf16|f16|f32] [--attention auto|own|cudnn] [--tune] [--profile] [--attention-alone]
//!         [--folder DIR]
//!
//! A is 2 texts of 2048 tokens, B 8 of 512, C 1 of 8192, D 8 of 12 to 20 (the original job's optimizer step, its
//! micro-batches merged), E is A with a 16-bit base. Random weights, linears in NF4 with double quantisation but for E,
//! LoRA on all 7 linears, 8-bit AdamW; every token has a target. The time of a step is the median of wall clock over N
//! steps after three that are not counted; `--profile` adds a table of one more step with an event around each operation.
//! `--attention-alone` times attention of one layer instead, forward and backward, over N steps; then also of texts of
//! several lengths and as many tokens in all.
//! `decode` and `load`: see `gpu/decode.rs` and `gpu/load.rs`; without a name A to C are run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "gpu/decode.rs"]
mod decode;
#[path = "gpu/load.rs"]
mod load;

use std::path::PathBuf;
use std::time::Instant;

use unslothify::engine::{Batch, Engine, LoadOptions, LoraConfig, MODULES, Memory, Mode, attention_of};
use unslothify::kernels::cuda::{AttentionKind, Dtype};
use unslothify::kernels::{Attention, Backend, Cuda};
use unslothify::optim::{AdamW8bit, Settings};
use unslothify::philox::Philox;
use unslothify::weights::ModelConfig;

const VOCABULARY: usize = 32768;
const UNCOUNTED: usize = 3;

struct Workload {
    name: char,
    /// Shortest and longest text.
    lengths: (usize, usize),
    texts: usize,
    in_4bit: bool,
}

const fn workload(name: char, texts: usize, lengths: (usize, usize)) -> Workload {
    Workload { name, lengths, texts, in_4bit: name != 'E' }
}

const WORKLOADS: [Workload; 5] = [
    workload('A', 2, (2048, 2048)),
    workload('B', 8, (512, 512)),
    workload('C', 1, (8192, 8192)),
    workload('D', 8, (12, 20)),
    workload('E', 2, (2048, 2048)),
];

struct Arguments {
    workloads: Vec<char>,
    memory: Memory,
    steps: usize,
    layers: usize,
    rank: usize,
    dtype: Option<Dtype>,
    is_tuned: bool,
    is_profiled: bool,
    attention: AttentionKind,
    is_attention_alone: bool,
    decodes: bool,
    loads: bool,
    folder: Option<PathBuf>,
}

fn arguments() -> Arguments {
    let mut given = Arguments {
        workloads: Vec::new(),
        memory: Memory::default(),
        steps: 10,
        layers: 32,
        rank: 16,
        dtype: None,
        is_tuned: false,
        is_profiled: false,
        attention: AttentionKind::Auto,
        is_attention_alone: false,
        decodes: false,
        loads: false,
        folder: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut next = || words.next().expect("a value after the option");
        match word.as_str() {
            "A" | "B" | "C" | "D" | "E" => given.workloads.extend(word.chars()),
            "decode" => given.decodes = true,
            "load" => given.loads = true,
            "--folder" => given.folder = Some(next().into()),
            "--memory" => given.memory = next().parse().expect("--memory"),
            "--steps" => given.steps = next().parse().expect("--steps"),
            "--layers" => given.layers = next().parse().expect("--layers"),
            "--rank" => given.rank = next().parse().expect("--rank"),
            "--tune" => given.is_tuned = true,
            "--profile" => given.is_profiled = true,
            "--dtype" => {
                let all = [Dtype::Bf16, Dtype::F16, Dtype::F32];
                let name = next();
                given.dtype = Some(all.into_iter().find(|dtype| dtype.name() == name).expect("bf16, f16 or f32"));
            }
            "--attention" => {
                let name = next();
                let found = AttentionKind::ALL.into_iter().find(|kind| kind.name() == name);
                given.attention = found.expect("auto, own or cudnn");
            }
            "--attention-alone" => given.is_attention_alone = true,
            // cargo bench adds this one
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    if given.workloads.is_empty() && !given.decodes && !given.loads {
        given.workloads = vec!['A', 'B', 'C'];
    }
    given
}

fn config(layers: usize) -> ModelConfig {
    ModelConfig::from_json(&config_text(layers), "random").unwrap()
}

fn config_text(layers: usize) -> String {
    format!(
        r#"{{"architectures":["MistralForCausalLM"],"model_type":"mistral","vocab_size":{VOCABULARY},"hidden_size":4096,
"intermediate_size":14336,"num_hidden_layers":{layers},"num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,
"max_position_embeddings":32768,"rms_norm_eps":1e-5,"rope_theta":1000000.0,"sliding_window":null,
"tie_word_embeddings":false,"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"torch_dtype":"bfloat16"}}"#
    )
}

fn main() {
    let begun = Instant::now();
    let given = arguments();
    if !Cuda::is_driver_there() {
        println!("not run: there is no NVIDIA driver on this machine");
        return;
    }
    for workload in WORKLOADS.iter().filter(|workload| given.workloads.contains(&workload.name)) {
        if given.is_attention_alone {
            let tokens = workload.texts * workload.lengths.1;
            attention_alone(workload.name, &lengths(workload), &given);
            for (least, most) in [(37, 1061), (16, 129)] {
                attention_alone(workload.name, &ragged(tokens, least, most), &given);
            }
        } else {
            run(workload, &given, begun);
        }
    }
    if given.decodes {
        decode::run(&given);
    }
    if given.loads {
        load::run(&given);
    }
}

fn lora(rank: usize) -> LoraConfig {
    LoraConfig {
        r: rank,
        lora_alpha: rank as f64,
        target_modules: MODULES.iter().map(|module| (*module).to_owned()).collect(),
        layers_to_transform: None,
        use_rslora: false,
        seed: 1,
    }
}

fn cuda(given: &Arguments) -> Cuda {
    let is_lean = given.memory == Memory::Lean;
    let attention =
        if is_lean && given.attention == AttentionKind::Auto { AttentionKind::Own } else { given.attention };
    let cuda = Cuda::new(0, given.dtype).unwrap().with_tuning(given.is_tuned).with_small_scratch(is_lean);
    cuda.with_attention(attention).unwrap()
}

/// Texts of `least` to below `most` tokens, `tokens` in all.
fn ragged(tokens: usize, least: usize, most: usize) -> Vec<usize> {
    let random = Philox::new(9, 0);
    let mut lengths = Vec::new();
    let mut left = tokens;
    while left > 0 {
        let length = (least + (random.uniform_at(lengths.len() as u64) * (most - least) as f64) as usize).min(left);
        lengths.push(length);
        left -= length;
    }
    lengths
}

/// Mean milliseconds of one layer's attention over `steps` passes, after three that are not counted.
fn attention_alone(workload: char, lengths: &[usize], given: &Arguments) {
    let backend = cuda(given);
    let device = backend.device().clone();
    let attention = Attention { heads: 32, kv_heads: 8, head_dim: 128, window: None };
    let (tokens, width) = (lengths.iter().sum::<usize>(), 48 * 128);
    let random = Philox::new(8, 0);
    let values = |len: usize| (0..len as u64).map(|i| random.uniform_at(i) as f32 * 2.0 - 1.0).collect::<Vec<_>>();
    let (mut qkv, mut do_) = (backend.act(), backend.act());
    backend.write_act(&mut qkv, tokens, width, &values(tokens * width)).unwrap();
    backend.write_act(&mut do_, tokens, 32 * 128, &values(tokens * 32 * 128)).unwrap();
    let borders: Vec<u32> = std::iter::once(0)
        .chain(lengths.iter().scan(0, |end, len| {
            *end += *len as u32;
            Some(*end)
        }))
        .collect();
    let (mut o, mut lse, mut dqkv) = (backend.act(), backend.full(0).unwrap(), backend.act());
    let mut step = || {
        let segments = backend.segments(&borders, 0).unwrap();
        backend.attention(&qkv, &segments, &attention, &mut o, &mut lse).unwrap();
        backend.attention_backward(&do_, &qkv, &o, &lse, &segments, &attention, &mut dqkv).unwrap();
        device.wait().unwrap();
    };
    let started = Instant::now();
    step();
    let first = started.elapsed().as_secs_f64();
    (1..UNCOUNTED).for_each(|_| step());
    device.measure(true);
    (0..given.steps).for_each(|_| step());
    let rows = device.measured().unwrap();
    device.measure(false);
    println!(
        "{workload}: {} texts of {} to {} tokens, {tokens} in all, {}, attention by {}; the first pass took {first:.2} s",
        lengths.len(),
        lengths.iter().min().unwrap(),
        lengths.iter().max().unwrap(),
        backend.dtype().name(),
        backend.attention_name(&attention)
    );
    for (name, time, _) in &rows {
        println!("  {name:<32} {:>9.3} ms", time / given.steps as f64);
    }
}

/// The lengths of a workload's texts.
fn lengths(workload: &Workload) -> Vec<usize> {
    let (least, most) = workload.lengths;
    (0..workload.texts).map(|text| least + text % (most - least + 1)).collect()
}

fn run(workload: &Workload, given: &Arguments, begun: Instant) {
    let backend = cuda(given);
    let device = backend.device().clone();
    let dtype = backend.dtype().name();
    let config = config(given.layers);
    let attention = backend.attention_name(&attention_of(&config));
    let started = Instant::now();
    let options = LoadOptions { load_in_4bit: workload.in_4bit, memory: given.memory };
    let mut engine = Engine::random(backend, config, 1, &options).unwrap();
    engine.add_lora(&lora(given.rank)).unwrap();
    let len = engine.backend().full_len(engine.flat().unwrap().params);
    let segments = engine.flat().unwrap().segments.to_vec();
    let mut optimizer = AdamW8bit::new(engine.backend(), Settings::default(), &segments, len).unwrap();
    device.wait().unwrap();
    let lengths = lengths(workload);
    let tokens: usize = lengths.iter().sum();
    println!(
        "{}: {} texts, {tokens} tokens, {} layers, r={}, {dtype}, {:?}, tuned: {}, attention by {attention}; base {:.2} GB in {:.1} s",
        workload.name,
        workload.texts,
        given.layers,
        given.rank,
        given.memory,
        given.is_tuned,
        engine.weight_bytes() as f64 / 1e9,
        started.elapsed().as_secs_f64()
    );
    println!("{}", engine.plan_for(tokens).unwrap());
    let predicted = engine.plan_for(tokens).unwrap().peak().unwrap();
    let random = Philox::new(7, 0);
    let ids: Vec<u32> = (0..tokens as u64).map(|i| (random.uniform_at(i) * VOCABULARY as f64) as u32).collect();
    let targets: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let mut borders = vec![0_u32];
    for length in &lengths {
        borders.push(borders[borders.len() - 1] + *length as u32);
    }
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
        if index < UNCOUNTED {
            let since = begun.elapsed().as_secs_f64();
            println!("  step {index}: {time:.1} ms, loss {loss:.4}, norm {norm:.4}, {since:.1} s since the start");
        }
        if index >= UNCOUNTED {
            times.push(time);
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let (free, total) = device.memory().unwrap();
    let peak = total - free;
    println!(
        "  {} {:?}: median {median:.1} ms/step ({:.1} to {:.1}), {:.0} tokens/s; peak {:.3} GB of the card, predicted {:.3} ({:+.1} %)",
        workload.name,
        given.memory,
        times[0],
        times[times.len() - 1],
        tokens as f64 / median * 1e3,
        peak as f64 / 1e9,
        predicted as f64 / 1e9,
        100.0 * (predicted as f64 / peak as f64 - 1.0)
    );
    if !given.is_profiled {
        return;
    }
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
