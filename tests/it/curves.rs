//! The built-in base on the recipe's texts: a GPU's losses follow the CPU's, step by step.

use std::sync::OnceLock;

use unslothify::data::{BatchOptions, Batches, Dataset, TestSize, TokenizeOptions};
use unslothify::engine::{AdapterTensor, LoraConfig, MODULES};
use unslothify::kernels::cuda::AttentionKind;
use unslothify::optim::Settings;
use unslothify::schedule::{Schedule, ScheduleOptions};
use unslothify::train::{Algorithm, Device, Dtype, LoadSettings, Model, Optimizer, Step, backward};

const STEPS: usize = 60;
const CPU: Device = Device::Cpu { threads: None };
const GPU: Device = Device::Cuda { index: 0 };

/// The base in 4 bits, as the recipe loads it.
fn model(device: Device, dtype: Option<Dtype>) -> Model {
    // own attention: cuDNN's leaves the last bits of gradients to chance
    let attention = AttentionKind::Own;
    let settings = LoadSettings { load_in_4bit: true, device, dtype, attention, ..LoadSettings::default() };
    Model::from_pretrained("builtin:tiny-mistral", ".".as_ref(), &settings).unwrap()
}

/// The recipe's training part, 8 texts a step.
fn batches(model: &Model) -> Batches {
    let repository = std::env::var_os("UNSLOTHIFY_TEST_ROOT").map(std::path::PathBuf::from);
    let root = repository.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let rows = Dataset::from_json(&root.join("recipes/data/meatballs.jsonl")).unwrap();
    let tokens = rows.tokenize(model.tokenizer(), &TokenizeOptions::default()).unwrap();
    let (train, _) = tokens.split(TestSize::Share(0.05), 1337).unwrap();
    train.batches(&BatchOptions { batch_size: 2, accumulate: 4, seed: 1337, ..BatchOptions::default() }).unwrap()
}

/// What a training gave.
struct Run {
    losses: Vec<f64>,
    /// Of every step, before clipping.
    gradients: Vec<Vec<AdapterTensor>>,
    skipped: u64,
}

/// The recipe's training, for so many steps; gradients are read where they are asked for.
fn train(model: &Model, steps: usize, reads_gradients: bool) -> Run {
    let target_modules = MODULES.iter().map(ToString::to_string).collect();
    let lora = LoraConfig {
        r: 16,
        lora_alpha: 16.0,
        target_modules,
        layers_to_transform: None,
        use_rslora: false,
        seed: 1337,
    };
    model.add_lora(&lora).unwrap();
    let settings = Settings { weight_decay: 0.1, ..Settings::default() };
    let optimizer = Optimizer::new(&model.parameters().unwrap(), Algorithm::AdamW8bit(settings)).unwrap();
    let options = ScheduleOptions {
        lr: model.learning_rate(),
        num_warmup_steps: Some(10.0),
        num_training_steps: Some(STEPS as f64),
        ..ScheduleOptions::default()
    };
    let rate = Schedule::get("linear", &options).unwrap();
    let mut run = Run { losses: Vec::new(), gradients: Vec::new(), skipped: 0 };
    for step in batches(model).epoch(0).into_iter().take(steps) {
        let index = step.index as u64;
        let mut sum = 0.0;
        for micro in &step.merged(model.room().unwrap()).micro {
            let loss = model.loss(micro).unwrap();
            backward(&loss).unwrap();
            sum += f64::from(loss.to_scalar::<f32>().unwrap());
        }
        if reads_gradients {
            run.gradients.push(model.gradients().unwrap());
        }
        optimizer.clip_grad_norm(1.0).unwrap();
        if let Step::Skipped(skipped) = optimizer.step(rate.at(index)).unwrap() {
            println!("step {index}: {skipped:?}");
            run.skipped += 1;
        }
        optimizer.zero_grad().unwrap();
        run.losses.push(sum);
    }
    run
}

/// The CPU's losses, computed once for all tests.
fn on_the_cpu() -> &'static [f64] {
    static LOSSES: OnceLock<Vec<f64>> = OnceLock::new();
    LOSSES.get_or_init(|| train(&model(CPU, None), STEPS, false).losses)
}

/// Whether a GPU is asked for; then it must be there.
fn asks_for_gpu() -> bool {
    let asks = std::env::var("UNSLOTHIFY_TEST_GPU").as_deref() == Ok("1");
    if !asks {
        println!("not run: UNSLOTHIFY_TEST_GPU=1 runs it, on a machine with a GPU");
    }
    asks
}

/// Fails where a loss is further from the CPU's than a part of it.
fn follows(dtype: Dtype, allowed: f64) {
    if !asks_for_gpu() {
        return;
    }
    let wanted = on_the_cpu();
    let run = train(&model(GPU, Some(dtype)), STEPS, false);
    assert_eq!((run.losses.len(), wanted.len(), run.skipped), (STEPS, STEPS, 0));
    assert!(wanted[STEPS - 1] < 0.9 * wanted[0], "nothing was learned: {wanted:?}");
    let errors: Vec<f64> = run.losses.iter().zip(wanted).map(|(got, wanted)| (got / wanted - 1.0).abs()).collect();
    let worst = (0..STEPS).max_by(|a, b| errors[*a].total_cmp(&errors[*b])).unwrap();
    println!(
        "{}: furthest at step {worst}, {:.2e}, allowed {allowed:.0e}; all: {errors:?}",
        dtype.name(),
        errors[worst]
    );
    assert!(errors[worst] <= allowed, "{}: step {worst} is off by {:.2e}", dtype.name(), errors[worst]);
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn sixty_steps_on_the_gpu_follow_the_cpu_in_f32() {
    follows(Dtype::F32, 1e-3);
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn sixty_steps_on_the_gpu_follow_the_cpu_in_bf16() {
    follows(Dtype::Bf16, 1e-2);
}

/// f16 keeps 11 bits of a number and bf16 8: where nothing falls out of f16's range, each of its roundings is an eighth of
/// bf16's, so an eighth of bf16's bound holds. Losses that need no scaling are then the same ones, so none is left out.
#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn sixty_steps_on_the_gpu_follow_the_cpu_in_f16() {
    follows(Dtype::F16, 1e-2 / 8.0);
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn two_trainings_on_the_gpu_have_the_same_gradients_to_the_bit() {
    if !asks_for_gpu() {
        return;
    }
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let run = || train(&model(GPU, Some(dtype)), 12, true);
        let (first, second) = (run(), run());
        assert_eq!(first.gradients.len(), 12);
        assert!(first.gradients == second.gradients, "{}: gradients differ from run to run", dtype.name());
        assert!(first.losses == second.losses, "{}: losses differ from run to run", dtype.name());
        let last = first.gradients.last().unwrap();
        assert!(last.iter().all(|tensor| tensor.values.iter().any(|value| *value != 0.0)), "a dead gradient");
    }
}
