#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{Case, Random, act, assert_close, check, check_gpu, difference, full};
use crate::kernels::{Attention, Backend, Cpu, Error, Reference};

struct Pass {
    cu_seqlens: Vec<u32>,
    first_position: usize,
    head_dim: usize,
    sign: f64,
}

fn frequencies(head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2).map(|j| 1e4_f32.powf(-2.0 * j as f32 / head_dim as f32)).collect()
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let attention = Attention { heads: 3, kv_heads: 1, head_dim: self.head_dim, window: None };
        let rows = self.cu_seqlens[self.cu_seqlens.len() - 1] as usize;
        let mut qkv = act(backend, rows, attention.width(), &Random::new(21).values(rows * attention.width()));
        let segments = backend.segments(&self.cu_seqlens, self.first_position).unwrap();
        let frequencies = full(backend, &frequencies(self.head_dim));
        backend.rope(&mut qkv, &segments, &attention, &frequencies, self.sign).unwrap();
        vec![backend.read_act(&qkv).unwrap()]
    }
}

fn pass(cu_seqlens: &[u32], first_position: usize, head_dim: usize, sign: f64) -> Pass {
    Pass { cu_seqlens: cu_seqlens.to_vec(), first_position, head_dim, sign }
}

#[test]
fn hand_computed_values() {
    let backend = Cpu::new(Some(1));
    let attention = Attention { heads: 1, kv_heads: 1, head_dim: 2, window: None };
    let quarter = std::f32::consts::FRAC_PI_2;
    let mut qkv = act(&backend, 2, 6, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let segments = backend.segments(&[0, 2], 0).unwrap();
    backend.rope(&mut qkv, &segments, &attention, &vec![quarter], 1.0).unwrap();
    assert_close(&qkv.values, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -2.0, 1.0, -4.0, 3.0, 5.0, 6.0], 1e-6);
}

#[test]
fn the_cpu_computes_what_the_reference_computes() {
    for head_dim in [2, 24, 64] {
        for sign in [1.0, -1.0] {
            check(&pass(&[0, 1], 0, head_dim, sign), 1e-6);
            check(&pass(&[0, 3, 3, 70, 400], 0, head_dim, sign), 1e-6);
            check(&pass(&[0, 1], 5000, head_dim, sign), 1e-6);
        }
    }
}

#[test]
fn the_negative_sign_undoes_the_positive() {
    let backend = Cpu::new(Some(2));
    let attention = Attention { heads: 2, kv_heads: 1, head_dim: 8, window: None };
    let values = Random::new(22).values(9 * attention.width());
    let mut qkv = act(&backend, 9, attention.width(), &values);
    let segments = backend.segments(&[0, 9], 3).unwrap();
    for sign in [1.0, -1.0] {
        backend.rope(&mut qkv, &segments, &attention, &frequencies(8), sign).unwrap();
    }
    assert_close(&qkv.values, &values, 1e-6);
}

#[test]
fn a_wrong_sign_is_detected() {
    let right = pass(&[0, 9], 0, 24, 1.0).run(&Reference::new());
    let wrong = pass(&[0, 9], 0, 24, -1.0).run(&Cpu::new(Some(1)));
    assert!(difference(&wrong[0], &right[0]) > 1e-2);
}

#[test]
fn an_odd_head_is_an_error() {
    let backend = Cpu::new(Some(1));
    let attention = Attention { heads: 1, kv_heads: 1, head_dim: 3, window: None };
    let mut qkv = act(&backend, 1, 9, &[0.0; 9]);
    let segments = backend.segments(&[0, 1], 0).unwrap();
    let result = backend.rope(&mut qkv, &segments, &attention, &vec![1.0], 1.0);
    assert!(matches!(result, Err(Error::Size { what: "head_dim modulo 2", got: 1, wanted: 0, .. })));
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    for (cu_seqlens, first) in
        [(&[0, 1][..], 0), (&[0, 1][..], 4000), (&[0, 17, 18, 18, 80], 0), (&[0, 65], 3), (&[0, 1025], 0)]
    {
        for head_dim in [2, 6, 16, 64, 128, 130] {
            for sign in [1.0, -1.0] {
                check_gpu(&pass(cu_seqlens, first, head_dim, sign), 1e-6, 4e-3);
            }
        }
    }
}
