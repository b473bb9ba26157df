//! `quant::dynamic::nearest` by a table: the leading bits of a value leave few codes to choose from.

use std::sync::LazyLock;

use crate::quant::dynamic::{nearest, signed_map, unsigned_map};

pub(super) static SIGNED: LazyLock<Codes> = LazyLock::new(|| Codes::new(signed_map()));
pub(super) static UNSIGNED: LazyLock<Codes> = LazyLock::new(|| Codes::new(unsigned_map()));

/// Bits of an f32 that a cell does not look at: it keeps the sign, the exponent and 5 bits of the fraction.
const DROPPED: u32 = 18;

/// The lowest code of every cell of values, and the midpoints above it.
pub(super) struct Codes {
    first: Box<[u8]>,
    /// `midpoints[c]` lies between codes c and c + 1; infinite after the last.
    midpoints: [f32; 256],
    /// The greatest number of midpoints in one cell.
    steps: usize,
}

impl Codes {
    fn new(map: &[f32; 256]) -> Self {
        let mut midpoints = [f32::INFINITY; 256];
        for (midpoint, pair) in midpoints.iter_mut().zip(map.windows(2)) {
            *midpoint = (pair[0] + pair[1]) * 0.5;
        }
        let cells = 1_u32 << (32 - DROPPED);
        let mut steps = 0;
        let first = (0..cells).map(|cell| {
            let (near, far) =
                (f32::from_bits(cell << DROPPED), f32::from_bits(((cell + 1) << DROPPED).wrapping_sub(1)));
            // Towards negative values the bits grow with the magnitude; a cell of NaNs has the code of NaN.
            let (low, high) = (nearest(map, near.min(far)), nearest(map, near.max(far)));
            steps = steps.max(usize::from(high.saturating_sub(low)));
            low
        });
        let first = first.collect();
        Self { first, midpoints, steps }
    }

    /// The code `nearest` gives.
    #[inline(always)]
    pub(super) fn nearest(&self, value: f32) -> u8 {
        let mut code = self.first[(value.to_bits() >> DROPPED) as usize];
        for _ in 0..self.steps {
            code += u8::from(value > self.midpoints[usize::from(code)]);
        }
        code
    }
}
