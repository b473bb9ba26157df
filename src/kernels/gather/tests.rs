#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{Case, Random, act, check, check_gpu};
use crate::kernels::{Backend, Cpu, Error};

struct Pass {
    rows: usize,
    width: usize,
    picked: Vec<u32>,
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let mut random = Random::new(81);
        let x = act(backend, self.rows, self.width, &random.values(self.rows * self.width));
        let mut target = act(backend, self.rows, self.width, &random.values(self.rows * self.width));
        let picked = backend.index(&self.picked).unwrap();
        let mut y = backend.act();
        backend.gather_rows(&x, &picked, &mut y).unwrap();
        backend.scatter_rows(&y, &picked, &mut target).unwrap();
        vec![backend.read_act(&y).unwrap(), backend.read_act(&target).unwrap()]
    }
}

#[test]
fn rows_are_moved_to_the_bit() {
    for (rows, width, picked) in [(1, 1, vec![0]), (3, 65, vec![]), (700, 64, (0..700).rev().step_by(3).collect())] {
        check(&Pass { rows, width, picked }, 0.0);
    }
}

#[test]
fn scatter_leaves_the_other_rows() {
    let backend = Cpu::new(Some(1));
    let mut y = act(&backend, 3, 1, &[1.0, 2.0, 3.0]);
    backend.scatter_rows(&act(&backend, 2, 1, &[7.0, 8.0]), &vec![2, 0], &mut y).unwrap();
    assert_eq!(y.values, [8.0, 2.0, 7.0]);
}

#[test]
fn rows_outside_are_errors() {
    let backend = Cpu::new(Some(1));
    let x = act(&backend, 2, 1, &[1.0, 2.0]);
    let result = backend.gather_rows(&x, &vec![2], &mut backend.act());
    assert!(matches!(result, Err(Error::Index { op: "gather_rows", index: 2, len: 2 })));
    let result = backend.scatter_rows(&x, &vec![0], &mut x.clone());
    assert!(matches!(result, Err(Error::Size { op: "scatter_rows", got: 2, wanted: 1, .. })));
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    for (rows, width, picked) in [(1, 1, vec![0]), (3, 65, vec![]), (700, 64, (0..700).rev().step_by(3).collect())] {
        check_gpu(&Pass { rows, width, picked }, 0.0, 0.0);
    }
}
