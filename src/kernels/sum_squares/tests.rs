#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{Random, full, gpus, levels};
use crate::kernels::{Backend, Cpu, Reference};

#[test]
fn hand_computed_value() {
    assert_eq!(Cpu::new(Some(1)).sum_squares(&vec![3.0, -4.0, 12.0]).unwrap(), 169.0);
}

#[test]
fn the_cpu_computes_what_the_reference_computes_on_any_number_of_threads() {
    for len in [0, 1, 65, 65_537, 300_001] {
        let values = Random::new(101).values(len);
        let wanted = Reference::new().sum_squares(&full(&Reference::new(), &values)).unwrap();
        let got = Cpu::new(Some(1)).sum_squares(&values).unwrap();
        assert!((got - wanted).abs() <= 1e-12 * wanted);
        for (level, threads) in levels().into_iter().flat_map(|level| [1, 2, 3, 7].map(|threads| (level, threads))) {
            let again = Cpu::new(Some(threads)).with_arch(level).sum_squares(&values).unwrap();
            assert_eq!(again.to_bits(), got.to_bits(), "{level:?}, {threads} threads");
        }
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    for gpu in gpus().iter().take(1) {
        for len in [0, 1, 65, 65_536, 65_537, 300_001] {
            let values = Random::new(101).values(len);
            let wanted = Reference::new().sum_squares(&full(&Reference::new(), &values)).unwrap();
            let x = full(gpu, &values);
            let got = gpu.sum_squares(&x).unwrap();
            assert!((got - wanted).abs() <= 1e-12 * wanted);
            assert_eq!(gpu.sum_squares(&x).unwrap().to_bits(), got.to_bits());
        }
    }
}
