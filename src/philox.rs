//! Philox4x32-10, the one source of randomness: a pure function of seed, stream and counter.
//!
//! Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; constants from its table 2.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// A stream of random numbers addressed by index: no state, so any order and any thread reads the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    stream: u64,
}

impl Philox {
    /// Streams of one seed are independent: give each purpose its own.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream }
    }

    /// The four words at `counter`.
    pub fn block(&self, counter: u64) -> [u32; 4] {
        let counter = [low(counter), high(counter), low(self.stream), high(self.stream)];
        rounds(counter, [low(self.seed), high(self.seed)])
    }

    /// Word `index` of the stream.
    pub fn u32_at(&self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// Uniform in [0, 1), 53 random bits; `index` counts numbers of two words each.
    pub fn uniform_at(&self, index: u64) -> f64 {
        let words = self.block(index / 2);
        let pair = if index.is_multiple_of(2) { [words[0], words[1]] } else { [words[2], words[3]] };
        let bits = (u64::from(pair[0]) << 21) ^ (u64::from(pair[1]) >> 11);
        bits as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A uniformly random order of `0..n` (Fisher-Yates from the end).
    pub fn permutation(&self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for last in (1..n).rev() {
            let pick = (self.uniform_at(last as u64) * (last + 1) as f64) as usize;
            order.swap(last, pick.min(last));
        }
        order
    }
}

fn low(x: u64) -> u32 {
    (x & 0xFFFF_FFFF) as u32
}

fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

fn rounds(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [high(b) ^ c[1] ^ key[0], low(b), high(a) ^ c[3] ^ key[1], low(a)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(rounds([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(rounds([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            rounds([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn permutations_hold_every_index_once_and_depend_on_seed_and_stream() {
        for n in [0, 1, 2, 7, 475] {
            let mut order = Philox::new(3, 0).permutation(n);
            order.sort_unstable();
            assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
        let base = Philox::new(3, 0).permutation(50);
        assert_ne!(base, Philox::new(4, 0).permutation(50));
        assert_ne!(base, Philox::new(3, 1).permutation(50));
    }

    #[test]
    fn uniform_numbers_stay_in_range_with_the_right_mean() {
        let stream = Philox::new(9, 9);
        let n = 20_000u64;
        let mean = (0..n).map(|i| stream.uniform_at(i)).sum::<f64>() / n as f64;
        assert!((0..n).all(|i| (0.0..1.0).contains(&stream.uniform_at(i))));
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
    }
}
