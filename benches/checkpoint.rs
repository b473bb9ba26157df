//! Trains on a checkpoint's folder with given tokens, to be set beside another program that does the same.
//!
//!     cargo bench --bench checkpoint -- FOLDER IDS.json TEXTS_PER_STEP [--memory lean|balanced|speed|7GB] [--16bit]
//!         [--steps N] [--attention auto|own|cudnn]
//!
//! IDS.json is a list of texts, each a list of token ids; step i takes the next TEXTS_PER_STEP of them. LoRA r=16 alpha=16
//! on all 7 linears, 8-bit AdamW, 2e-4 linear with 5 steps of warm-up, weight decay 0.01, clipping at 1; every token but a
//! text's first is a target. Prints one line of JSON: times from the start of the process, losses, the peak of the card.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::path::PathBuf;
use std::time::Instant;

use unslothify::engine::{Batch, Engine, IGNORE, LoadOptions, LoraConfig, MODULES, Memory, Mode};
use unslothify::kernels::cuda::AttentionKind;
use unslothify::kernels::{Backend, Cuda};
use unslothify::optim::{AdamW8bit, Settings};
use unslothify::weights::Checkpoint;

const RATE: f64 = 2e-4;
const WARMUP: usize = 5;
const UNCOUNTED: usize = 5;

fn main() {
    let begun = Instant::now();
    let (mut places, mut memory, mut steps, mut in_4bit) = (Vec::new(), Memory::default(), usize::MAX, true);
    let mut attention = AttentionKind::Auto;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut next = || words.next().expect("a value after the option");
        match word.as_str() {
            "--memory" => memory = next().parse().expect("--memory"),
            "--steps" => steps = next().parse().expect("--steps"),
            "--attention" => {
                let (name, all) = (next(), [AttentionKind::Auto, AttentionKind::Own, AttentionKind::Cudnn]);
                attention = all.into_iter().find(|kind| kind.name() == name).expect("auto, own or cudnn");
            }
            "--16bit" => in_4bit = false,
            "--bench" => {}
            _ => places.push(word),
        }
    }
    let [folder, ids, texts] = places.as_slice() else {
        println!("not run: wants FOLDER IDS.json TEXTS_PER_STEP");
        return;
    };
    if !Cuda::is_driver_there() {
        println!("not run: there is no NVIDIA driver on this machine");
        return;
    }
    let texts: usize = texts.parse().expect("TEXTS_PER_STEP");
    let rows: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(ids).unwrap()).unwrap();
    let is_lean = memory == Memory::Lean;
    let attention = if is_lean && attention == AttentionKind::Auto { AttentionKind::Own } else { attention };
    let backend = Cuda::new(0, None).unwrap().with_small_scratch(is_lean).with_attention(attention).unwrap();
    let device = backend.device().clone();
    let checkpoint = Checkpoint::open(&PathBuf::from(folder)).unwrap();
    let loading = Instant::now();
    let mut engine = Engine::load(backend, &checkpoint, &LoadOptions { load_in_4bit: in_4bit, memory }).unwrap();
    device.wait().unwrap();
    let load_seconds = loading.elapsed().as_secs_f64();
    let target_modules = MODULES.iter().map(|module| (*module).to_owned()).collect();
    let lora = LoraConfig {
        r: 16,
        lora_alpha: 16.0,
        target_modules,
        layers_to_transform: None,
        use_rslora: false,
        seed: 3407,
    };
    engine.add_lora(&lora).unwrap();
    let len = engine.backend().full_len(engine.flat().unwrap().params);
    let segments = engine.flat().unwrap().segments.to_vec();
    let settings = Settings { weight_decay: 0.01, ..Settings::default() };
    let mut optimizer = AdamW8bit::new(engine.backend(), settings, &segments, len).unwrap();

    let total = (rows.len() / texts).min(steps);
    let longest = rows.chunks(texts).map(|step| step.iter().map(Vec::len).sum::<usize>()).max().unwrap_or(0);
    let predicted = engine.plan_for(longest).unwrap().peak().unwrap();
    let (mut times, mut losses, mut norms, mut first, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), 0.0, 0);
    let training = Instant::now();
    for (index, step) in rows.chunks(texts).take(total).enumerate() {
        let start = Instant::now();
        let ids = step.concat();
        let mut borders = vec![0_u32];
        let mut targets = Vec::with_capacity(ids.len());
        for text in step {
            borders.push(borders[borders.len() - 1] + text.len() as u32);
            targets.extend(text[1..].iter().map(|&id| id as i32).chain([IGNORE]));
        }
        let count = targets.iter().filter(|&&target| target != IGNORE).count();
        let batch = Batch { ids: &ids, cu_seqlens: &borders, targets: &targets };
        let loss = engine.forward(&batch, Mode::Train, count as f64).unwrap();
        engine.backward(1.0).unwrap();
        let flat = engine.flat_mut().unwrap();
        let norm = flat.backend.sum_squares(flat.gradients).unwrap().sqrt();
        let rate = if index < WARMUP {
            RATE * index as f64 / WARMUP as f64
        } else {
            RATE * (total - index) as f64 / (total - WARMUP) as f64
        };
        optimizer.step(flat.backend, flat.params, flat.gradients, rate, (1.0 / (norm + 1e-6)).min(1.0)).unwrap();
        engine.zero_grad().unwrap();
        device.wait().unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e3);
        if index == 0 {
            first = begun.elapsed().as_secs_f64();
        }
        (losses, norms) = ([losses, vec![round(loss)]].concat(), [norms, vec![round(norm)]].concat());
        tokens = ids.len();
    }
    let train_seconds = training.elapsed().as_secs_f64();
    let mut steady = times[UNCOUNTED.min(times.len() - 1)..].to_vec();
    steady.sort_by(f64::total_cmp);
    let (free, card) = device.memory().unwrap();
    let facts = serde_json::json!({
        "program": "unslothify", "memory": format!("{memory:?}"), "in_4bit": in_4bit, "load_s": round(load_seconds),
        "start_to_first_step_s": round(first), "train_s": round(train_seconds), "steps": times.len(),
        "ms_median": round(steady[steady.len() / 2]), "ms_min": round(steady[0]), "ms_max": round(steady[steady.len() - 1]),
        "tokens_of_last_step": tokens, "card_gb": round((card - free) as f64 / 1e9), "predicted_gb": round(predicted as f64 / 1e9),
        "losses": losses[..losses.len().min(17)], "norms": norms[..norms.len().min(6)],
    });
    println!("RESULT {facts}");
}

/// To four digits after the point.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
