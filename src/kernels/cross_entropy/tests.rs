#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{
    Case, Random, act, assert_close, check, check_gpu, check_gradient, difference, gpus, wide,
};
use crate::kernels::{Backend, Cpu, Error, Reference, matrix::Matrix};

struct Pass {
    rows: usize,
    vocabulary: usize,
    spread: f32,
    weight: f64,
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let mut random = Random::new(31);
        let values: Vec<f32> = random.values(self.rows * self.vocabulary).iter().map(|v| v * self.spread).collect();
        let mut logits = act(backend, self.rows, self.vocabulary, &values);
        let targets: Vec<u32> = (0..self.rows).map(|_| random.index(self.vocabulary)).collect();
        let targets = backend.index(&targets).unwrap();
        let log_probs = backend.log_probs(&logits, &targets).unwrap();
        let loss = backend.cross_entropy(&mut logits, &targets, self.weight).unwrap();
        let log_probs = log_probs.iter().map(|&v| v as f32).collect();
        vec![vec![loss as f32], log_probs, backend.read_act(&logits).unwrap()]
    }
}

#[test]
fn hand_computed_values() {
    let backend = Cpu::new(Some(1));
    let ln2 = std::f32::consts::LN_2;
    let mut logits = act(&backend, 2, 2, &[0.0, 0.0, 2.0 * ln2, 0.0]);
    let targets = vec![1, 0];
    let log_probs = backend.log_probs(&logits, &targets).unwrap();
    assert!((log_probs[0] + 2.0_f64.ln()).abs() < 1e-7 && (log_probs[1] + 1.25_f64.ln()).abs() < 1e-7);
    let loss = backend.cross_entropy(&mut logits, &targets, 0.5).unwrap();
    assert!((loss - (2.0_f64.ln() + 1.25_f64.ln())).abs() < 1e-7);
    assert_close(&logits.values, &[0.25, -0.25, -0.1, 0.1], 1e-6);
}

#[test]
fn the_cpu_computes_what_the_reference_computes() {
    for (rows, vocabulary) in [(1, 1), (1, 63), (3, 64), (7, 65), (70, 513), (9, 4099)] {
        for spread in [1.0, 15.0] {
            check(&Pass { rows, vocabulary, spread, weight: 0.125 }, 2e-6);
        }
    }
}

#[test]
fn extreme_and_flat_rows_are_safe() {
    let backend = Cpu::new(Some(2));
    for (values, target, wanted) in [
        ([1e4, -1e4, 0.0], 0, 0.0),
        ([1e4, -1e4, 0.0], 1, 2e4),
        ([-1e4, -1e4, -1e4], 2, 3.0_f64.ln()),
        ([1e4, 1e4, 1e4], 2, 3.0_f64.ln()),
    ] {
        let mut logits = act(&backend, 1, 3, &values);
        let loss = backend.cross_entropy(&mut logits, &vec![target], 1.0).unwrap();
        assert!((loss - wanted).abs() <= 1e-6 * wanted.max(1.0), "{loss} against {wanted}");
        assert!(logits.values.iter().all(|v| v.is_finite() && v.abs() <= 1.0));
    }
    let mut flat = act(&backend, 1, 32768, &[0.5; 32768]);
    let loss = backend.cross_entropy(&mut flat, &vec![9], 1.0).unwrap();
    assert!((loss - 32768_f64.ln()).abs() < 1e-5);
}

#[test]
fn a_wrong_sign_is_detected() {
    let pass = |weight| Pass { rows: 3, vocabulary: 65, spread: 1.0, weight };
    let (right, wrong) = (pass(1.0).run(&Reference::new()), pass(-1.0).run(&Cpu::new(Some(1))));
    assert!(difference(&wrong[2], &right[2]) > 1e-2);
}

#[test]
fn the_gradient_is_the_derivative() {
    let (rows, cols) = (3, 5);
    let logits = wide(&Random::new(32).values(rows * cols));
    let targets = [0, 4, 2];
    let run = |values: &[f64]| {
        let mut logits = Matrix { rows, cols, values: values.to_vec() };
        let loss = super::reference::loss_and_gradient(&mut logits, &targets, 0.25);
        (0.25 * loss, logits.values)
    };
    check_gradient(&logits, &run(&logits).1, |logits| run(logits).0);
}

#[test]
fn a_target_outside_the_vocabulary_is_an_error_and_changes_nothing() {
    let backend = Cpu::new(Some(1));
    let mut logits = act(&backend, 2, 3, &[1.0; 6]);
    let result = backend.cross_entropy(&mut logits, &vec![0, 3], 1.0);
    assert!(matches!(result, Err(Error::Index { op: "cross_entropy", index: 3, len: 3 })));
    assert_eq!(logits.values, [1.0; 6]);
    assert!(matches!(backend.log_probs(&logits, &vec![0]), Err(Error::Size { got: 1, wanted: 2, .. })));
    assert_eq!(backend.cross_entropy(&mut backend.act(), &vec![], 1.0).unwrap(), 0.0);
}

#[test]
fn a_logit_that_is_not_a_number_shows_in_the_loss() {
    let backend = Cpu::new(Some(1));
    let mut logits = act(&backend, 1, 3, &[0.0, f32::NAN, 1.0]);
    assert!(backend.cross_entropy(&mut logits, &vec![0], 1.0).unwrap().is_nan());
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    for (rows, vocabulary) in [(1, 1), (1, 63), (3, 64), (7, 65), (70, 513), (9, 4099), (3, 32768)] {
        for spread in [1.0, 15.0] {
            check_gpu(&Pass { rows, vocabulary, spread, weight: 0.125 }, 3e-6, 4e-3);
        }
    }
    for gpu in gpus().iter().take(1) {
        let mut flat = act(gpu, 1, 32768, &[0.5; 32768]);
        let loss = gpu.cross_entropy(&mut flat, &gpu.index(&[9]).unwrap(), 1.0).unwrap();
        assert!((loss - 32768_f64.ln()).abs() < 1e-5);
        let mut steep = act(gpu, 1, 3, &[1e4, -1e4, 0.0]);
        let loss = gpu.cross_entropy(&mut steep, &gpu.index(&[1]).unwrap(), 1.0).unwrap();
        assert!((loss - 2e4).abs() < 1e-2 && gpu.read_act(&steep).unwrap().iter().all(|v| v.is_finite()));
    }
}
