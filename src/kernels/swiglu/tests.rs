#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{Case, Random, act, assert_close, check, check_gpu, check_gradient, difference, wide};
use crate::kernels::{Backend, Cpu, Error, Reference, matrix::Matrix};

struct Pass {
    rows: usize,
    width: usize,
    spread: f32,
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let mut random = Random::new(3);
        let values: Vec<f32> = random.values(2 * self.rows * self.width).iter().map(|v| v * self.spread).collect();
        let mut gate_up = act(backend, self.rows, 2 * self.width, &values);
        let mut dh = act(backend, self.rows, self.width, &random.values(self.rows * self.width));
        let mut h = backend.act();
        backend.swiglu(&gate_up, &mut h).unwrap();
        backend.swiglu_backward(&mut dh, &mut gate_up).unwrap();
        [&h, &dh, &gate_up].map(|act| backend.read_act(act).unwrap()).to_vec()
    }
}

#[test]
fn hand_computed_values() {
    let backend = Cpu::new(Some(1));
    let mut gate_up = act(&backend, 1, 6, &[0.0, 1.0, -200.0, 5.0, 2.0, 3.0]);
    let mut h = backend.act();
    backend.swiglu(&gate_up, &mut h).unwrap();
    let silu = 0.731_058_6;
    assert_close(&h.values, &[0.0, 2.0 * silu, 0.0], 1e-6);
    let mut dh = act(&backend, 1, 3, &[1.0, 1.0, 1.0]);
    backend.swiglu_backward(&mut dh, &mut gate_up).unwrap();
    assert_close(&dh.values, &[0.0, 2.0 * silu, 0.0], 1e-6);
    let slope = silu * (1.0 + (1.0 - silu));
    assert_close(&gate_up.values, &[2.5, 2.0 * slope, 0.0, 0.0, silu, 0.0], 1e-6);
}

#[test]
fn the_cpu_computes_what_the_reference_computes() {
    for (rows, width) in [(1, 1), (1, 63), (3, 64), (5, 65), (160, 257), (513, 130)] {
        for spread in [1.0, 30.0] {
            check(&Pass { rows, width, spread }, 1e-6);
        }
    }
}

#[test]
fn a_wrong_sign_is_detected() {
    let right = Pass { rows: 5, width: 65, spread: 1.0 }.run(&Reference::new());
    let wrong = Pass { rows: 5, width: 65, spread: -1.0 }.run(&Cpu::new(Some(2)));
    for (right, wrong) in right.iter().zip(&wrong) {
        assert!(difference(wrong, right) > 1e-2);
    }
}

#[test]
fn the_gradient_is_the_derivative() {
    let (rows, width) = (2, 5);
    let mut random = Random::new(4);
    let gate_up = wide(&random.values(2 * rows * width));
    let weights = wide(&random.values(rows * width));
    let mut gradient = Matrix { rows, cols: 2 * width, values: gate_up.clone() };
    let mut dh = Matrix { rows, cols: width, values: weights.clone() };
    super::reference::backward(&mut dh, &mut gradient);
    check_gradient(&gate_up, &gradient.values, |gate_up| {
        let gate_up = Matrix { rows, cols: 2 * width, values: gate_up.to_vec() };
        let mut h = Matrix { rows, cols: width, values: vec![0.0; rows * width] };
        super::reference::forward(&gate_up, &mut h);
        h.values.iter().zip(&weights).map(|(h, w)| h * w).sum()
    });
}

#[test]
fn halves_of_different_width_are_an_error() {
    let backend = Cpu::new(Some(1));
    let mut gate_up = act(&backend, 1, 5, &[1.0; 5]);
    assert!(matches!(backend.swiglu(&gate_up, &mut backend.act()), Err(Error::Size { op: "swiglu", .. })));
    let mut dh = act(&backend, 1, 3, &[1.0; 3]);
    assert!(matches!(backend.swiglu_backward(&mut dh, &mut gate_up), Err(Error::Size { got: 5, wanted: 6, .. })));
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    for (rows, width) in [(1, 1), (1, 64), (3, 63), (7, 65), (70, 257), (2, 14336), (1025, 40)] {
        for spread in [1.0, 20.0] {
            check_gpu(&Pass { rows, width, spread }, 2e-6, 4e-3);
        }
    }
}
