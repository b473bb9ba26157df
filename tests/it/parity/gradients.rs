//! Adapter gradients against torch's autograd, and against each other.

use unslothify::engine::{AdapterTensor, Engine, LoraConfig, MODULES, Mode};
use unslothify::kernels::{AdamWStep, Backend, Cpu, Reference};

use super::fixture::{CASES, Case, RANKS, Rows, Text, Worst, compare, frobenius_error, put_adapter};

const GRADIENTS: f64 = 1e-5;

fn pass<B: Backend>(engine: &mut Engine<B>, rows: &Rows, normalizer: usize) -> f64 {
    let loss = engine.forward(&rows.batch(), Mode::Train, normalizer as f64).unwrap();
    engine.backward(1.0).unwrap();
    loss
}

fn of_first_batch<B: Backend>(engine: &mut Engine<B>, case: &Case) -> Vec<AdapterTensor> {
    let rows = case.rows(0);
    pass(engine, &rows, rows.target_count());
    engine.gradients().unwrap()
}

fn flatten(tensors: &[AdapterTensor]) -> Vec<f32> {
    tensors.iter().flat_map(|tensor| tensor.values.iter().copied()).collect()
}

fn check<B: Backend>(backend: impl Fn() -> B) {
    let mut all = Worst::default();
    for name in CASES.into_iter().chain(RANKS) {
        let case = Case::open(name);
        let worst = compare(&case, "gradient", &of_first_batch(&mut case.engine(backend()), &case));
        all.see(format!("{name} {}", worst.at), worst.error);
    }
    all.within("gradients", GRADIENTS);
}

#[test]
fn cpu_gradients_equal_torch() {
    check(|| Cpu::new(Some(2)));
}

#[test]
fn reference_gradients_equal_torch() {
    check(Reference::new);
}

#[test]
fn a_wrong_alpha_or_scaling_rule_is_seen() {
    let edits: [fn(LoraConfig) -> LoraConfig; 2] = [
        |config| LoraConfig { lora_alpha: config.lora_alpha * (1.0 + 1e-4), ..config },
        |config| LoraConfig { use_rslora: !config.use_rslora, ..config },
    ];
    for name in ["untied", "rslora"] {
        let case = Case::open(name);
        for edit in edits {
            let mut engine = case.base(Cpu::new(Some(1)));
            put_adapter(&mut engine, &case.adapter_folder(), edit);
            let worst = compare(&case, "gradient", &of_first_batch(&mut engine, &case));
            assert!(worst.error > 2.0 * GRADIENTS, "{name}: {:.1e} only", worst.error);
        }
    }
}

#[test]
fn texts_end_to_end_and_one_by_one_give_the_same_gradients() {
    let case = Case::open("texts");
    let rows = case.rows(0);
    let mut together = case.engine(Cpu::new(Some(2)));
    pass(&mut together, &rows, rows.target_count());
    let mut apart = case.engine(Cpu::new(Some(2)));
    for text in &case.facts.batches[0] {
        let one = Rows::new(std::slice::from_ref(text));
        // a text of one token has nothing to predict, and a batch without a target is refused
        if one.target_count() > 0 {
            pass(&mut apart, &one, rows.target_count());
        }
    }
    let mut worst = Worst::default();
    for (a, b) in together.gradients().unwrap().iter().zip(&apart.gradients().unwrap()) {
        worst.see(a.name(), frobenius_error(&a.values, &b.values));
    }
    worst.within("end to end against one by one", 1e-6);
}

/// The case's eight texts of two tokens and more.
fn eight(case: &Case) -> Vec<Text> {
    let texts: Vec<Text> = case.facts.batches.iter().flatten().filter(|text| text.ids.len() > 1).cloned().collect();
    assert_eq!(texts.len(), 8);
    texts
}

#[test]
fn every_split_of_eight_texts_gives_the_same_gradient() {
    let case = Case::open("texts");
    let texts = eight(&case);
    let targets = Rows::new(&texts).target_count();
    let of_split = |size: usize| {
        let mut engine = case.engine(Cpu::new(Some(2)));
        let loss: f64 = texts.chunks(size).map(|part| pass(&mut engine, &Rows::new(part), targets)).sum();
        (loss, flatten(&engine.gradients().unwrap()))
    };
    let (loss, whole) = of_split(8);
    let mut worst = Worst::default();
    for size in 1..8 {
        let (split_loss, split) = of_split(size);
        worst.see(format!("{size} at a time"), frobenius_error(&split, &whole));
        assert!((split_loss - loss).abs() <= 1e-6 * loss, "{size} at a time: {split_loss} against {loss}");
    }
    worst.within("splits of eight texts", 1e-6);
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    for name in ["texts", "nf4"] {
        let case = Case::open(name);
        let of_threads = |threads| flatten(&of_first_batch(&mut case.engine(Cpu::new(Some(threads))), &case));
        let (one, two) = (of_threads(1), of_threads(2));
        assert!(one.iter().zip(&two).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
    }
}

#[test]
fn every_adapter_tensor_has_a_gradient_after_two_updates() {
    for name in ["untied", "tied", "nf4"] {
        let case = Case::open(name);
        let mut engine = case.base(Cpu::new(Some(2)));
        let modules = MODULES.iter().map(|module| (*module).to_owned()).collect();
        let config = LoraConfig {
            r: 4,
            lora_alpha: 10.0,
            target_modules: modules,
            layers_to_transform: None,
            use_rslora: false,
            seed: 9,
        };
        engine.add_lora(&config).unwrap();
        let zero = engine.flat().unwrap();
        let len = engine.backend().full_len(zero.params);
        let (mut m, mut v) = (engine.backend().full(len).unwrap(), engine.backend().full(len).unwrap());
        for step in 1..=2 {
            engine.zero_grad().unwrap();
            of_first_batch(&mut engine, &case);
            let constants = AdamWStep {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
                step,
                gradient_scale: 1.0,
            };
            let flat = engine.flat_mut().unwrap();
            flat.backend.adamw(flat.params, flat.gradients, &mut m, &mut v, flat.segments, &constants).unwrap();
        }
        engine.zero_grad().unwrap();
        let gradients = of_first_batch(&mut engine, &case);
        assert_eq!(gradients.len(), 14 * engine.config().num_hidden_layers);
        for tensor in gradients {
            assert!(tensor.values.iter().all(|value| value.is_finite()), "{name}: {}", tensor.name());
            let norm = tensor.values.iter().map(|value| value * value).sum::<f32>().sqrt();
            assert!(norm > 1e-6, "{name}: {} has a gradient of norm {norm:e}", tensor.name());
        }
    }
}
