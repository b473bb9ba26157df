//! The same cases on a GPU: f32 close to transformers, peft and torch, bf16 as close as bf16 is.

use std::io::Write;

use unslothify::engine::{AdapterTensor, Engine, Mode};
use unslothify::kernels::cuda::{AttentionKind, Dtype};
use unslothify::kernels::{AdamWStep, Backend, Cuda, Error};

use super::fixture::{CASES, Case, Worst, frobenius_error, max_error};

/// f32 on a GPU: sums in another order, no TF32.
const F32: f64 = 1e-4;

/// The first GPU, or none unless `UNSLOTHIFY_TEST_GPU=1` asks for it; then it must be there.
fn gpu(dtype: Dtype) -> Option<Cuda> {
    if std::env::var("UNSLOTHIFY_TEST_GPU").as_deref() != Ok("1") {
        println!("not run: UNSLOTHIFY_TEST_GPU=1 runs it, on a machine with a GPU");
        return None;
    }
    Some(Cuda::new(0, Some(dtype)).unwrap_or_else(|error| panic!("{error}")))
}

/// As `gpu` in bf16 with attention by cuDNN; none, and a line that says so past the harness, where that cannot be had.
fn cudnn() -> Option<Cuda> {
    match gpu(Dtype::Bf16)?.with_attention(AttentionKind::Cudnn) {
        Ok(gpu) => Some(gpu),
        Err(error @ (Error::NoCudnn | Error::UnfitCudnn { .. })) => {
            let _ = writeln!(std::io::stderr(), "\nNOT RUN: training with attention by cuDNN, because {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn pass<B: Backend>(engine: &mut Engine<B>, case: &Case, batch: usize) -> f64 {
    let rows = case.rows(batch);
    let loss = engine.forward(&rows.batch(), Mode::Train, rows.target_count() as f64).unwrap();
    engine.backward(1.0).unwrap();
    loss
}

fn cosine(got: &[f32], want: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(got, want) / (dot(got, got) * dot(want, want)).sqrt()
}

/// Worst errors over all cases.
#[derive(Default)]
struct Seen {
    logits: Worst,
    loss: Worst,
    gradients: Worst,
    turned: Worst,
}

fn look(gpu: impl Fn() -> Option<Cuda>) -> Option<Seen> {
    let mut seen = Seen::default();
    for name in CASES {
        let case = Case::open(name);
        let mut engine = case.engine(gpu()?);
        let logits = engine.logits(&case.rows(0).batch()).unwrap();
        seen.logits.see(name, max_error(&logits, case.expect("logits")));
        let loss = pass(&mut engine, &case, 0);
        seen.loss.see(name, (loss - case.facts.loss).abs() / case.facts.loss);
        let gradients: Vec<AdapterTensor> = engine.gradients().unwrap();
        assert!(!gradients.is_empty(), "{name}");
        for tensor in gradients {
            let at = format!("gradient.{}", tensor.name());
            let wanted = case.expect(&at);
            seen.gradients.see(format!("{name} {at}"), frobenius_error(&tensor.values, wanted));
            seen.turned.see(format!("{name} {at}"), 1.0 - cosine(&tensor.values, wanted));
        }
    }
    Some(seen)
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn f32_on_the_gpu_equals_transformers_and_torch() {
    let Some(seen) = look(|| gpu(Dtype::F32)) else { return };
    seen.logits.within("logits", F32);
    seen.loss.within("loss", F32);
    seen.gradients.within("gradients", F32);
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn bf16_on_the_gpu_is_near_transformers_and_torch() {
    bf16_is_near(look(|| gpu(Dtype::Bf16)));
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn bf16_by_cudnn_on_the_gpu_is_near_transformers_and_torch() {
    bf16_is_near(look(cudnn));
}

fn bf16_is_near(seen: Option<Seen>) {
    let Some(seen) = seen else { return };
    seen.turned.within("1 - cosine of gradients", 1e-3);
    seen.gradients.within("gradients", 2e-2);
    seen.loss.within("loss", 2e-3);
    seen.logits.within("logits", 2e-2);
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn ten_gpu_steps_end_where_torch_ends() {
    let mut worst = Worst::default();
    for name in CASES {
        let case = Case::open(name);
        let Some(gpu) = gpu(Dtype::F32) else { return };
        let mut engine = case.engine(gpu);
        let len = engine.backend().full_len(engine.flat().unwrap().params);
        let (mut m, mut v) = (engine.backend().full(len).unwrap(), engine.backend().full(len).unwrap());
        for (step, facts) in case.facts.steps.iter().take(10).enumerate() {
            pass(&mut engine, &case, step);
            let flat = engine.flat_mut().unwrap();
            let norm = flat.backend.sum_squares(flat.gradients).unwrap().sqrt();
            let constants = AdamWStep {
                lr: facts.learning_rate,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: case.facts.weight_decay,
                step: step as u64 + 1,
                gradient_scale: (case.facts.max_norm / (norm + 1e-6)).min(1.0),
            };
            flat.backend.adamw(flat.params, flat.gradients, &mut m, &mut v, flat.segments, &constants).unwrap();
            engine.zero_grad().unwrap();
        }
        for tensor in engine.adapter_tensors().unwrap() {
            let at = format!("step10.{}", tensor.name());
            worst.see(format!("{name} {at}"), frobenius_error(&tensor.values, case.expect(&at)));
        }
    }
    worst.within("parameters after 10 steps", 1e-3);
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn twenty_greedy_tokens_on_the_gpu_equal_transformers() {
    for name in CASES {
        let case = Case::open(name);
        let Some(gpu) = gpu(Dtype::F32) else { return };
        let mut engine = case.engine(gpu);
        let mut cache = engine.cache();
        let mut next = case.facts.prompt.clone();
        let mut generated = Vec::new();
        while generated.len() < case.facts.generated.len() {
            let logits = engine.decode(&next, &mut cache).unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            generated.push(best);
            next = vec![best];
        }
        assert_eq!(generated, case.facts.generated, "{name}");
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_same_step_on_the_gpu_gives_the_same_bits() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let case = Case::open("texts");
        let run = || {
            let mut engine = case.engine(gpu(dtype)?);
            pass(&mut engine, &case, 0);
            Some(engine.gradients().unwrap())
        };
        assert_eq!(run(), run());
    }
}
