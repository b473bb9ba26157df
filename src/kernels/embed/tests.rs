#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{Case, Random, check, check_gpu, difference, stored};
use crate::kernels::{Backend, Cpu, Error, Reference};

struct Pass {
    vocabulary: usize,
    width: usize,
    ids: Vec<u32>,
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let values = Random::new(71).values(self.vocabulary * self.width);
        let (first, second) = values.split_at(self.vocabulary / 2 * self.width);
        let parts = [first, second].map(|part| stored(part.len() / self.width, self.width, part));
        let table = backend.weight(parts.to_vec()).unwrap();
        let mut x = backend.act();
        backend.embed(&table, &backend.index(&self.ids).unwrap(), &mut x).unwrap();
        vec![backend.read_act(&x).unwrap()]
    }
}

fn pass(ids: &[u32]) -> Pass {
    Pass { vocabulary: 11, width: 65, ids: ids.to_vec() }
}

#[test]
fn rows_are_copied_to_the_bit() {
    for ids in [vec![], vec![10], vec![0, 4, 5, 6, 0], vec![7; 600]] {
        check(&pass(&ids), 0.0);
    }
}

#[test]
fn a_wrong_id_is_detected() {
    assert!(difference(&pass(&[3]).run(&Cpu::new(Some(1)))[0], &pass(&[4]).run(&Reference::new())[0]) > 0.1);
}

#[test]
fn an_id_outside_the_table_is_an_error() {
    let backend = Cpu::new(Some(1));
    let table = backend.weight(vec![stored(2, 2, &[0.0; 4])]).unwrap();
    let result = backend.embed(&table, &vec![0, 2], &mut backend.act());
    assert!(matches!(result, Err(Error::Index { op: "embed", index: 2, len: 2 })));
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    for ids in [vec![], vec![10], vec![0, 4, 5, 6, 0], vec![7; 600]] {
        check_gpu(&pass(&ids), 0.0, 0.0);
    }
}
