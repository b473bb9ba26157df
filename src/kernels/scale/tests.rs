#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{Case, Random, act, check, check_gpu, difference, full, read_full};
use crate::kernels::{Backend, Cpu, Reference};

struct Pass {
    len: usize,
    factor: f64,
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let values = Random::new(91).values(self.len);
        let (mut x, mut flat) = (act(backend, 1, self.len, &values), full(backend, &values));
        backend.scale(&mut x, self.factor).unwrap();
        backend.scale_full(&mut flat, self.factor).unwrap();
        vec![backend.read_act(&x).unwrap(), read_full(backend, &flat)]
    }
}

#[test]
fn the_cpu_computes_what_the_reference_computes() {
    for len in [0, 1, 65, 100_001] {
        check(&Pass { len, factor: -1.5 }, 1e-7);
    }
}

#[test]
fn a_wrong_sign_is_detected() {
    let (right, wrong) = (Pass { len: 65, factor: 1.5 }, Pass { len: 65, factor: -1.5 });
    assert!(difference(&wrong.run(&Cpu::new(Some(1)))[0], &right.run(&Reference::new())[0]) > 1.0);
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    for len in [0, 1, 65, 1_000_001] {
        check_gpu(&Pass { len, factor: -1.5 }, 1e-7, 4e-3);
    }
}
