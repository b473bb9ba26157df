//! The buffers both backends compute on.

use std::ops::Range;

use super::{Error, Result};

/// A row-major matrix, one row per token; `values.len() == rows * cols`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix<F> {
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<F>,
}

impl<F: Copy + Default> Matrix<F> {
    pub(crate) fn new() -> Self {
        Self { rows: 0, cols: 0, values: Vec::new() }
    }

    /// Gives the matrix a shape and keeps its memory; the values are whatever they were, new ones are zero.
    pub(crate) fn resize(&mut self, rows: usize, cols: usize) -> Result<()> {
        resize("resize", &mut self.values, rows.saturating_mul(cols))?;
        (self.rows, self.cols) = (rows, cols);
        Ok(())
    }

    /// `Backend::copy_rows`.
    pub(crate) fn copy_rows(&self, first: usize, rows: usize, to: &mut Self, to_first: usize) -> Result<()> {
        super::check_rows((self.rows, self.cols), first, rows, (to.rows, to.cols), to_first)?;
        let cols = self.cols;
        to.values[to_first * cols..(to_first + rows) * cols]
            .copy_from_slice(&self.values[first * cols..(first + rows) * cols]);
        Ok(())
    }

    /// Takes the shape and the values of `from`.
    pub(crate) fn take(&mut self, from: &Self) -> Result<()> {
        self.resize(from.rows, from.cols)?;
        self.values.copy_from_slice(&from.values);
        Ok(())
    }

    pub(crate) fn row(&self, row: usize) -> &[F] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [F] {
        &mut self.values[row * self.cols..(row + 1) * self.cols]
    }
}

/// A vector of zeros, or the error that says how much memory was asked for.
pub(crate) fn zeros<F: Copy + Default>(op: &'static str, len: usize) -> Result<Vec<F>> {
    let mut values = Vec::new();
    resize(op, &mut values, len)?;
    Ok(values)
}

/// Gives `values` that length; values that are there stay, new ones are zero.
pub(crate) fn resize<F: Copy + Default>(op: &'static str, values: &mut Vec<F>, len: usize) -> Result<()> {
    reserve(op, values, len)?;
    values.resize(len, F::default());
    Ok(())
}

fn reserve<F>(op: &'static str, values: &mut Vec<F>, len: usize) -> Result<()> {
    let bytes = len.saturating_mul(size_of::<F>());
    values.try_reserve(len.saturating_sub(values.len())).map_err(|_| Error::Memory { op, bytes })
}

/// Where the texts of a batch lie in its rows, and at which position each of them starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Texts {
    starts: Vec<usize>,
    first_position: usize,
}

impl Texts {
    /// From prefix sums `0, …, tokens`.
    pub(crate) fn new(cu_seqlens: &[u32], first_position: usize) -> Result<Self> {
        let starts: Vec<usize> = cu_seqlens.iter().map(|&start| start as usize).collect();
        if starts.first() != Some(&0) {
            let got = starts.first().copied().unwrap_or(usize::MAX);
            return Err(Error::Size { op: "segments", what: "the first prefix sum", got, wanted: 0 });
        }
        for pair in starts.windows(2) {
            if pair[1] < pair[0] {
                let what = "a prefix sum, which must not be less than the one before,";
                return Err(Error::Size { op: "segments", what, got: pair[1], wanted: pair[0] });
            }
        }
        Ok(Self { starts, first_position })
    }

    /// Gives every text another first position.
    pub(crate) fn shift(&mut self, first_position: usize) {
        self.first_position = first_position;
    }

    pub(crate) fn tokens(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The rows of each text.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Range<usize>> + Clone + '_ {
        self.starts.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// The position of every row in its text.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.rows().flat_map(move |rows| (0..rows.len()).map(move |row| self.first_position + row))
    }

    /// One more than the highest position.
    pub(crate) fn position_end(&self) -> usize {
        self.first_position + self.rows().map(|rows| rows.len()).max().unwrap_or(0)
    }
}
