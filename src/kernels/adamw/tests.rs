#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{Case, Random, assert_close, check, check_gpu, difference, full, read_full};
use crate::kernels::{AdamWStep, Backend, Cpu, Error, Reference, StateSegment};

pub(crate) fn step(step: u64) -> AdamWStep {
    AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step, gradient_scale: 1.0 }
}

struct Pass {
    segments: Vec<StateSegment>,
    len: usize,
    eps: f64,
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let mut random = Random::new(51);
        let mut params = full(backend, &random.values(self.len));
        let (mut m, mut v) = (backend.full(self.len).unwrap(), backend.full(self.len).unwrap());
        for t in 1..=3 {
            let gradients = full(backend, &random.values(self.len));
            let step = AdamWStep { eps: self.eps, gradient_scale: 0.5, ..step(t) };
            backend.adamw(&mut params, &gradients, &mut m, &mut v, &self.segments, &step).unwrap();
        }
        [&params, &m, &v].map(|full| read_full(backend, full)).to_vec()
    }
}

fn pass(lens: &[usize], eps: f64) -> Pass {
    let (mut segments, mut offset) = (Vec::new(), 1);
    for &len in lens {
        segments.push(StateSegment { offset, len, eight_bit: len % 2 == 0 });
        offset += len + 2;
    }
    Pass { segments, len: offset, eps }
}

#[test]
fn hand_computed_step() {
    let backend = Cpu::new(Some(1));
    let (mut params, gradients) = (vec![1.0, -2.0, 7.0], vec![0.5, 2.0, 1.0]);
    let (mut m, mut v) = (vec![0.0; 3], vec![0.0; 3]);
    let segments = [StateSegment { offset: 0, len: 2, eight_bit: false }];
    let step = AdamWStep { lr: 0.1, weight_decay: 0.5, eps: 0.0, ..step(1) };
    backend.adamw(&mut params, &gradients, &mut m, &mut v, &segments, &step).unwrap();
    // Decay by 0.95, then the first step moves by lr against the gradient's sign; the third is outside the segment.
    assert_close(&params, &[0.85, -2.0, 7.0], 1e-6);
    assert_close(&m, &[0.05, 0.2, 0.0], 1e-6);
    assert_close(&v, &[0.000_25, 0.004, 0.0], 1e-6);
}

#[test]
fn the_cpu_computes_what_the_reference_computes() {
    check(&pass(&[1], 1e-8), 1e-6);
    check(&pass(&[64, 63, 65], 1e-8), 1e-6);
    check(&pass(&[40_000, 5, 17_001], 1e-8), 1e-6);
}

#[test]
fn a_wrong_eps_is_detected() {
    let (right, wrong) = (pass(&[65], 1e-8).run(&Reference::new()), pass(&[65], 1e-2).run(&Cpu::new(Some(1))));
    assert!(difference(&wrong[0], &right[0]) > 1e-5);
}

#[test]
fn a_segment_outside_the_buffer_is_an_error() {
    let backend = Cpu::new(Some(1));
    let segments = [StateSegment { offset: 1, len: 3, eight_bit: false }];
    let mut state = [vec![0.0; 3], vec![0.0; 3], vec![0.0; 3]];
    let [params, m, v] = &mut state;
    let result = backend.adamw(params, &vec![0.0; 3], m, v, &segments, &step(1));
    assert!(matches!(result, Err(Error::Index { op: "adamw", index: 4, len: 3 })));
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    check_gpu(&pass(&[1], 1e-8), 1e-6, 1e-2);
    check_gpu(&pass(&[64, 63, 65], 1e-8), 1e-6, 1e-2);
    check_gpu(&pass(&[256, 257, 255, 512], 1e-8), 1e-6, 1e-2);
    check_gpu(&pass(&[40_000, 5, 17_001], 1e-8), 1e-6, 1e-2);
}
