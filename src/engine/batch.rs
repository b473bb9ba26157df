//! What the engine reads: texts laid end to end.

use super::{BatchFault, Error, Result};

/// The target of a row that predicts nothing.
pub const IGNORE: i32 = -100;

/// Texts laid end to end: `ids[t]`, and the token `targets[t]` that row `t` must predict (`IGNORE`: none).
///
/// `cu_seqlens` are the borders: text `i` is `ids[cu_seqlens[i]..cu_seqlens[i + 1]]`, and attention stays inside it.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    pub ids: &'a [u32],
    pub cu_seqlens: &'a [u32],
    pub targets: &'a [i32],
}

impl Batch<'_> {
    /// Checks lengths, borders and token ids against the vocabulary.
    pub(crate) fn check(&self, vocabulary: usize) -> Result<()> {
        self.fault(vocabulary).map_or(Ok(()), |fault| Err(Error::Batch(fault)))
    }

    fn fault(&self, vocabulary: usize) -> Option<BatchFault> {
        let tokens = self.ids.len();
        if tokens == 0 {
            return Some(BatchFault::Empty);
        }
        if self.targets.len() != tokens {
            return Some(BatchFault::Lengths { ids: tokens, targets: self.targets.len() });
        }
        let rising = self.cu_seqlens.windows(2).all(|pair| pair[0] < pair[1]);
        let whole =
            self.cu_seqlens.first() == Some(&0) && self.cu_seqlens.last().map(|&end| end as usize) == Some(tokens);
        if !(rising && whole) {
            return Some(BatchFault::Borders { tokens });
        }
        let id = self.ids.iter().position(|&id| id as usize >= vocabulary);
        let target = self.targets.iter().position(|&t| t != IGNORE && (t < 0 || t as usize >= vocabulary));
        let fault = |position, id| Some(BatchFault::Token { id, position, vocabulary });
        match (id, target) {
            (Some(position), _) => fault(position, i64::from(self.ids[position])),
            (None, Some(position)) => fault(position, i64::from(self.targets[position])),
            (None, None) => None,
        }
    }

    /// The rows that have a target, and their targets.
    pub(crate) fn target_rows(&self) -> (Vec<u32>, Vec<u32>) {
        let with_target = self.targets.iter().enumerate().filter(|(_, target)| **target != IGNORE);
        with_target.map(|(row, &target)| (row as u32, target as u32)).unzip()
    }
}
