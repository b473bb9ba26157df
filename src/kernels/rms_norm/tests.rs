#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{
    Case, Random, act, assert_close, check, check_gpu, check_gradient, difference, full, gpus, read_full, wide,
};
use crate::kernels::{Backend, Cpu, Error, Reference, matrix::Matrix};

struct Pass {
    rows: usize,
    width: usize,
    eps: f64,
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let mut random = Random::new(1);
        let len = self.rows * self.width;
        let x = act(backend, self.rows, self.width, &random.values(len));
        let dy = act(backend, self.rows, self.width, &random.values(len));
        let mut dx = act(backend, self.rows, self.width, &random.values(len));
        let weight = full(backend, &random.values(self.width));
        let (mut y, mut rstd) = (backend.act(), backend.full(0).unwrap());
        backend.rms_norm(&x, &weight, self.eps, &mut y, &mut rstd).unwrap();
        backend.rms_norm_backward_add(&dy, &x, &weight, &rstd, &mut dx).unwrap();
        vec![backend.read_act(&y).unwrap(), read_full(backend, &rstd), backend.read_act(&dx).unwrap()]
    }
}

#[test]
fn hand_computed_rows() {
    let backend = Cpu::new(Some(1));
    let x = act(&backend, 2, 2, &[3.0, 4.0, 0.0, 2.0]);
    let weight = full(&backend, &[1.0, 10.0]);
    let (mut y, mut rstd) = (backend.act(), backend.full(0).unwrap());
    backend.rms_norm(&x, &weight, 0.5, &mut y, &mut rstd).unwrap();
    // mean squares 12.5 and 2; with eps 13 and 2.5.
    let (first, second) = (1.0 / 13.0_f32.sqrt(), 1.0 / 2.5_f32.sqrt());
    assert_close(&rstd, &[first, second], 1e-7);
    assert_close(&y.values, &[3.0 * first, 40.0 * first, 0.0, 20.0 * second], 1e-7);
}

#[test]
fn the_cpu_computes_what_the_reference_computes() {
    for (rows, width) in [(1, 1), (1, 63), (3, 64), (5, 65), (160, 257), (513, 130)] {
        check(&Pass { rows, width, eps: 1e-5 }, 2e-6);
    }
}

#[test]
fn a_wrong_eps_is_detected() {
    let right = Pass { rows: 5, width: 65, eps: 1e-5 }.run(&Reference::new());
    let wrong = Pass { rows: 5, width: 65, eps: 1e-4 }.run(&Cpu::new(Some(2)));
    assert!(difference(&wrong[0], &right[0]) > 2e-6);
    assert!(difference(&wrong[2], &right[2]) > 2e-6);
}

#[test]
fn the_gradient_is_the_derivative() {
    let (rows, width, eps) = (3, 7, 1e-3);
    let mut random = Random::new(2);
    let x = wide(&random.values(rows * width));
    let weight = wide(&random.values(width));
    let dy = Matrix { rows, cols: width, values: wide(&random.values(rows * width)) };
    let forward = |x: &[f64]| {
        let x = Matrix { rows, cols: width, values: x.to_vec() };
        let (mut y, mut rstd) = (x.clone(), vec![0.0; rows]);
        super::reference::forward(&x, &weight, eps, &mut y, &mut rstd);
        (x, y, rstd)
    };
    let (matrix, _, rstd) = forward(&x);
    let mut dx = Matrix { rows, cols: width, values: vec![1.0; rows * width] };
    super::reference::backward_add(&dy, &matrix, &weight, &rstd, &mut dx);
    let gradient: Vec<f64> = dx.values.iter().map(|v| v - 1.0).collect();
    check_gradient(&x, &gradient, |x| forward(x).1.values.iter().zip(&dy.values).map(|(y, dy)| y * dy).sum());
}

#[test]
fn a_weight_of_another_width_is_an_error() {
    let backend = Cpu::new(Some(1));
    let x = act(&backend, 1, 4, &[1.0; 4]);
    let weight = full(&backend, &[1.0; 3]);
    let result = backend.rms_norm(&x, &weight, 1e-5, &mut backend.act(), &mut Vec::new());
    assert!(matches!(result, Err(Error::Size { op: "rms_norm", got: 3, wanted: 4, .. })));
}

#[test]
fn statistics_that_no_memory_holds_are_an_error() {
    let rows = usize::MAX / 16;
    let x = Matrix::<f32> { rows, cols: 0, values: Vec::new() };
    let failed = Cpu::new(Some(1)).rms_norm(&x, &Vec::new(), 1e-5, &mut Matrix::new(), &mut Vec::new());
    assert!(matches!(failed, Err(Error::Memory { op: "rms_norm", bytes }) if bytes == 4 * rows), "{failed:?}");
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    for (rows, width) in [(1, 1), (1, 63), (3, 64), (5, 65), (160, 257), (513, 130), (3, 4096), (2, 14336), (4097, 8)] {
        check_gpu(&Pass { rows, width, eps: 1e-5 }, 2e-6, 4e-3);
    }
    let right = Pass { rows: 5, width: 65, eps: 1e-5 }.run(&Reference::new());
    for gpu in gpus().iter().take(1) {
        let wrong = Pass { rows: 5, width: 65, eps: 1e-4 }.run(gpu);
        assert!(difference(&wrong[0], &right[0]) > 2e-6 && difference(&wrong[2], &right[2]) > 2e-6);
    }
}
