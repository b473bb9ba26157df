//! Ten optimizer steps from a PEFT adapter end where torch and PEFT end, by the calls a recipe makes.

use unslothify::engine::AdapterTensor;
use unslothify::optim;
use unslothify::schedule::{Schedule, ScheduleOptions};
use unslothify::train::{Algorithm, Device, Optimizer, backward};

use super::fixture::{CASES, Case, Worst, compare};

const CPU: Device = Device::Cpu { threads: Some(2) };
const AFTER_TEN: f64 = 1e-4;

/// What changes between runs that must and must not agree.
#[derive(Clone, Copy)]
struct Settings {
    adamw: optim::Settings,
    max_norm: f64,
    warmup: usize,
}

impl Settings {
    fn of(case: &Case) -> Self {
        let facts = &case.facts;
        let adamw = optim::Settings { betas: (0.9, 0.999), eps: 1e-8, weight_decay: facts.weight_decay };
        Self { adamw, max_norm: facts.max_norm, warmup: facts.warmup }
    }

    fn schedule(&self, case: &Case) -> Schedule {
        let options = ScheduleOptions {
            lr: case.facts.peak,
            num_warmup_steps: Some(self.warmup as f64),
            num_training_steps: Some(case.facts.total as f64),
            ..ScheduleOptions::default()
        };
        Schedule::get("linear", &options).unwrap()
    }
}

#[derive(Default)]
struct Run {
    /// The adapter before the first step and after each.
    adapters: Vec<Vec<AdapterTensor>>,
    losses: Worst,
    norms: Worst,
    rates: Worst,
}

/// Trains `steps` steps in transformers' order: clip, update at this step's rate, then the schedule moves on.
fn train(device: Device, case: &Case, steps: usize, settings: Settings) -> Run {
    let model = case.adapted_model(device);
    let optimizer = Optimizer::new(&model.parameters().unwrap(), Algorithm::AdamW(settings.adamw)).unwrap();
    let schedule = settings.schedule(case);
    let mut run = Run { adapters: vec![model.adapter_tensors().unwrap()], ..Run::default() };
    for (step, wanted) in case.facts.steps.iter().enumerate().take(steps) {
        let loss = model.loss(&case.micro(step)).unwrap();
        backward(&loss).unwrap();
        let norm = optimizer.clip_grad_norm(settings.max_norm).unwrap();
        let rate = schedule.at(step as u64);
        optimizer.step(rate).unwrap();
        optimizer.zero_grad().unwrap();
        run.adapters.push(model.adapter_tensors().unwrap());
        let (at, loss) = (format!("{} step {step}", case.name), f64::from(loss.to_scalar::<f32>().unwrap()));
        run.losses.see(&at, (loss - wanted.loss).abs() / wanted.loss);
        run.norms.see(&at, (norm - wanted.grad_norm).abs() / wanted.grad_norm);
        run.rates.see(at, (rate - wanted.learning_rate).abs() / case.facts.peak);
    }
    assert_eq!(run.losses.compared, steps);
    run
}

fn check(device: Device) {
    let (mut two, mut ten) = (Worst::default(), Worst::default());
    let (mut losses, mut norms, mut rates) = (Worst::default(), Worst::default(), Worst::default());
    for name in CASES {
        let case = Case::open(name);
        let run = train(device, &case, 10, Settings::of(&case));
        let worst = compare(&case, "step2", &run.adapters[2]);
        two.see(format!("{name} {}", worst.at), worst.error);
        let worst = compare(&case, "step10", &run.adapters[10]);
        ten.see(format!("{name} {}", worst.at), worst.error);
        losses.see(run.losses.at, run.losses.error);
        norms.see(run.norms.at, run.norms.error);
        rates.see(run.rates.at, run.rates.error);
    }
    two.within("parameters after 2 steps", 1e-5);
    ten.within("parameters after 10 steps", AFTER_TEN);
    losses.within("losses on the way", 1e-5);
    norms.within("gradient norms on the way", 1e-4);
    rates.within("learning rates on the way", 1e-12);
}

#[test]
fn ten_cpu_steps_end_where_torch_and_peft_end() {
    check(CPU);
}

#[test]
fn ten_reference_steps_end_where_torch_and_peft_end() {
    check(Device::Reference);
}

#[test]
fn the_first_step_of_a_warm_up_changes_nothing() {
    let case = Case::open("untied");
    let run = train(CPU, &case, 2, Settings::of(&case));
    assert_eq!(run.adapters[1], run.adapters[0]);
    assert_ne!(run.adapters[2], run.adapters[1]);
}

#[test]
fn a_wrong_decay_clip_warm_up_or_epsilon_is_seen() {
    let case = Case::open("tied");
    let right = Settings::of(&case);
    let adamw = right.adamw;
    let wrong = [
        ("no weight decay", Settings { adamw: optim::Settings { weight_decay: 0.0, ..adamw }, ..right }),
        ("no clipping", Settings { max_norm: 0.0, ..right }),
        ("warm-up one step longer", Settings { warmup: right.warmup + 1, ..right }),
        ("epsilon 1e-5", Settings { adamw: optim::Settings { eps: 1e-5, ..adamw }, ..right }),
    ];
    for (what, settings) in wrong {
        let run = train(CPU, &case, 10, settings);
        let worst = compare(&case, "step10", &run.adapters[10]);
        assert!(worst.error > 2.0 * AFTER_TEN, "{what}: {:.1e} only", worst.error);
    }
}
