//! Ten optimizer steps from a PEFT adapter end where torch and PEFT end.

use unslothify::engine::{AdapterTensor, Engine, Mode};
use unslothify::kernels::{AdamWStep, Backend, Cpu, Reference};

use super::fixture::{CASES, Case, Worst, compare};

const AFTER_TEN: f64 = 1e-4;

/// What changes between runs that must and must not agree.
#[derive(Clone, Copy)]
struct Settings {
    weight_decay: f64,
    max_norm: f64,
    warmup: usize,
    epsilon: f64,
}

impl Settings {
    fn of(case: &Case) -> Self {
        let facts = &case.facts;
        Self { weight_decay: facts.weight_decay, max_norm: facts.max_norm, warmup: facts.warmup, epsilon: 1e-8 }
    }

    /// transformers' linear schedule with warm-up.
    fn rate(&self, case: &Case, step: usize) -> f64 {
        let (warmup, total) = (self.warmup as f64, case.facts.total as f64);
        let step = step as f64;
        let factor = if step < warmup { step / warmup } else { (total - step) / (total - warmup) };
        case.facts.peak * factor.max(0.0)
    }
}

struct Log {
    losses: Worst,
    norms: Worst,
}

/// Trains `steps` steps in transformers' order: clip, update at this step's rate, then the schedule moves on.
fn train<B: Backend>(engine: &mut Engine<B>, case: &Case, steps: usize, settings: Settings) -> Log {
    let len = engine.backend().full_len(engine.flat().unwrap().params);
    let (mut m, mut v) = (engine.backend().full(len).unwrap(), engine.backend().full(len).unwrap());
    let mut log = Log { losses: Worst::default(), norms: Worst::default() };
    for step in 0..steps {
        let rows = case.rows(step);
        let loss = engine.forward(&rows.batch(), Mode::Train, rows.target_count() as f64).unwrap();
        engine.backward(1.0).unwrap();
        let flat = engine.flat_mut().unwrap();
        let norm = flat.backend.sum_squares(flat.gradients).unwrap().sqrt();
        let constants = AdamWStep {
            lr: settings.rate(case, step),
            beta1: 0.9,
            beta2: 0.999,
            eps: settings.epsilon,
            weight_decay: settings.weight_decay,
            step: step as u64 + 1,
            gradient_scale: (settings.max_norm / (norm + 1e-6)).min(1.0),
        };
        flat.backend.adamw(flat.params, flat.gradients, &mut m, &mut v, flat.segments, &constants).unwrap();
        engine.zero_grad().unwrap();
        let wanted = &case.facts.steps[step];
        assert!((constants.lr - wanted.learning_rate).abs() < 1e-12 || settings.warmup != case.facts.warmup);
        log.losses.see(format!("{} step {step}", case.name), (loss - wanted.loss).abs() / wanted.loss);
        log.norms.see(format!("{} step {step}", case.name), (norm - wanted.grad_norm).abs() / wanted.grad_norm);
    }
    log
}

/// Parameters after `steps` steps, from the adapter PEFT wrote.
fn after<B: Backend>(engine: &mut Engine<B>, case: &Case, steps: usize) -> (Vec<AdapterTensor>, Log) {
    let log = train(engine, case, steps, Settings::of(case));
    (engine.adapter_tensors().unwrap(), log)
}

fn check<B: Backend>(backend: impl Fn() -> B) {
    let (mut two, mut ten) = (Worst::default(), Worst::default());
    let (mut losses, mut norms) = (Worst::default(), Worst::default());
    for name in CASES {
        let case = Case::open(name);
        let worst = compare(&case, "step2", &after(&mut case.engine(backend()), &case, 2).0);
        two.see(format!("{name} {}", worst.at), worst.error);
        let (tensors, log) = after(&mut case.engine(backend()), &case, 10);
        let worst = compare(&case, "step10", &tensors);
        ten.see(format!("{name} {}", worst.at), worst.error);
        losses.see(log.losses.at, log.losses.error);
        norms.see(log.norms.at, log.norms.error);
    }
    two.within("parameters after 2 steps", 1e-5);
    ten.within("parameters after 10 steps", AFTER_TEN);
    losses.within("losses on the way", 1e-5);
    norms.within("gradient norms on the way", 1e-4);
}

#[test]
fn ten_cpu_steps_end_where_torch_and_peft_end() {
    check(|| Cpu::new(Some(2)));
}

#[test]
fn ten_reference_steps_end_where_torch_and_peft_end() {
    check(Reference::new);
}

#[test]
fn the_first_step_of_a_warm_up_changes_nothing() {
    let case = Case::open("untied");
    let mut engine = case.engine(Cpu::new(Some(1)));
    let before = engine.adapter_tensors().unwrap();
    assert_eq!(after(&mut engine, &case, 1).0, before);
}

#[test]
fn a_wrong_decay_clip_warm_up_or_epsilon_is_seen() {
    let case = Case::open("tied");
    let right = Settings::of(&case);
    let wrong = [
        ("no weight decay", Settings { weight_decay: 0.0, ..right }),
        ("no clipping", Settings { max_norm: 1e9, ..right }),
        ("warm-up one step longer", Settings { warmup: right.warmup + 1, ..right }),
        ("epsilon 1e-5", Settings { epsilon: 1e-5, ..right }),
    ];
    for (what, settings) in wrong {
        let mut engine = case.engine(Cpu::new(Some(2)));
        train(&mut engine, &case, 10, settings);
        let worst = compare(&case, "step10", &engine.adapter_tensors().unwrap());
        assert!(worst.error > 2.0 * AFTER_TEN, "{what}: {:.1e} only", worst.error);
    }
}
