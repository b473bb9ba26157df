#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use pulp::Arch;

use super::cpu::product;
use super::{Product, Start};
use crate::kernels::testing::{Random, assert_close, assert_same_bits, levels};

/// Row-major operands with slack at the end of every row.
struct Operands {
    rows: usize,
    cols: usize,
    depth: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    start: Vec<f32>,
}

const SLACK: usize = 3;

impl Operands {
    fn new(rows: usize, cols: usize, depth: usize) -> Self {
        let mut random = Random::new(111);
        let mut matrix = |rows: usize, cols: usize| random.values(rows * (cols + SLACK));
        Self { rows, cols, depth, a: matrix(rows, depth), b: matrix(depth, cols), start: matrix(rows, cols) }
    }

    fn product<'a>(&'a self, depth: std::ops::Range<usize>, start: Start<'a>) -> Product<'a> {
        let b_row = self.cols + SLACK;
        let (a, b) = (&self.a[depth.start..], &self.b[depth.start * b_row..]);
        let (rows, cols, depth) = (self.rows, self.cols, depth.len());
        Product { rows, cols, depth, a, a_row: self.depth + SLACK, a_col: 1, b, b_row, start }
    }

    fn run(&self, level: Arch, c: &mut [f32], product_of: Product<'_>) {
        product(level, product_of, c, self.cols + SLACK);
    }

    /// In f64 by plain loops; the slack as it was in `c`.
    fn wanted(&self, c: &[f32], start: Option<&[f32]>) -> Vec<f32> {
        let stride = self.cols + SLACK;
        let mut c = c.to_vec();
        for i in 0..self.rows {
            for j in 0..self.cols {
                let a = |k: usize| f64::from(self.a[i * (self.depth + SLACK) + k]);
                let sum: f64 = (0..self.depth).map(|k| a(k) * f64::from(self.b[k * stride + j])).sum();
                c[i * stride + j] = (sum + start.map_or(0.0, |start| f64::from(start[i * stride + j]))) as f32;
            }
        }
        c
    }
}

/// Shapes that fill every tile in part and in whole, on every level.
fn shapes() -> impl Iterator<Item = (Arch, Operands)> {
    let rows = [1, 2, 3, 4, 5, 6, 7, 13];
    let cols = [1, 15, 16, 17, 31, 33, 48, 63, 64];
    let shapes = rows.into_iter().flat_map(move |rows| cols.into_iter().map(move |cols| (rows, cols)));
    let operands = |(rows, cols)| Operands::new(rows, cols, 1 + rows * cols % 70);
    levels().into_iter().flat_map(move |level| shapes.clone().map(move |shape| (level, operands(shape))))
}

#[test]
fn every_tile_computes_the_product() {
    for (level, operands) in shapes() {
        let mut c = vec![9.0; operands.start.len()];
        let wanted = operands.wanted(&c, None);
        operands.run(level, &mut c, operands.product(0..operands.depth, Start::Zero));
        assert_close(&c, &wanted, 2e-6);
        let mut c = vec![9.0; operands.start.len()];
        let start = Start::Rows(&operands.start, operands.cols + SLACK);
        operands.run(level, &mut c, operands.product(0..operands.depth, start));
        assert_close(&c, &operands.wanted(&vec![9.0; c.len()], Some(&operands.start)), 2e-6);
    }
}

#[test]
fn depth_in_pieces_gives_the_same_bits() {
    for (level, operands) in shapes() {
        let (mut whole, mut pieces) = (operands.start.clone(), operands.start.clone());
        operands.run(level, &mut whole, operands.product(0..operands.depth, Start::Output));
        let middle = operands.depth / 3;
        operands.run(level, &mut pieces, operands.product(0..middle, Start::Output));
        operands.run(level, &mut pieces, operands.product(middle..operands.depth, Start::Output));
        assert_same_bits(&pieces, &whole);
    }
}

#[test]
fn a_transposed_left_side_gives_the_same_bits() {
    for (level, operands) in shapes() {
        let (rows, depth) = (operands.rows, operands.depth);
        let (mut straight, mut turned) = (operands.start.clone(), operands.start.clone());
        operands.run(level, &mut straight, operands.product(0..depth, Start::Zero));
        let transposed: Vec<f32> =
            (0..depth * rows).map(|at| operands.a[at % rows * (depth + SLACK) + at / rows]).collect();
        let product_of = Product { a: &transposed, a_row: 1, a_col: rows, ..operands.product(0..depth, Start::Zero) };
        operands.run(level, &mut turned, product_of);
        assert_same_bits(&turned, &straight);
    }
}
