//! bitsandbytes' dynamic 8-bit maps: 256 sorted values whose precision falls with their magnitude.

use std::sync::LazyLock;

static SIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic_map(true));
static UNSIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic_map(false));

/// The map from -0.993 to 1.0 with 0 at index 127; first moments and the scales of NF4 scales use it.
pub fn signed_map() -> &'static [f32; 256] {
    &SIGNED
}

/// The map from 0 (index 0) to 1.0; second moments use it.
pub fn unsigned_map() -> &'static [f32; 256] {
    &UNSIGNED
}

/// The index of the value of `map` nearest to `value`; exactly halfway goes to the lower one.
///
/// `map` is sorted. NaN gives 0.
#[inline]
pub fn nearest(map: &[f32; 256], value: f32) -> u8 {
    // The number of midpoints below `value`, by halving: 255 midpoints fit 8 branchless steps.
    let mut index = 0usize;
    let mut half = 128usize;
    while half > 0 {
        let middle = (map[index + half - 1] + map[index + half]) * 0.5;
        index += if value > middle { half } else { 0 };
        half /= 2;
    }
    index as u8
}

/// `create_dynamic_map(signed, max_exponent_bits=7, total_bits=8)`: for each of seven powers of ten the means of
/// neighbouring points of an even grid from 0.1 to 1, then 0 and 1. Rounded where bitsandbytes rounds.
fn dynamic_map(signed: bool) -> [f32; 256] {
    const POWERS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut map = [0f32; 256];
    let mut filled = 0;
    for (exponent, power) in POWERS.into_iter().enumerate() {
        let intervals = if signed { 1usize << exponent } else { 2usize << exponent };
        let step = f64::from((1.0 - 0.1f32) / intervals as f32);
        // An even grid, each half counted from its own end, each point rounded once: torch's linspace fuses
        // multiply and add on every x86 machine with AVX2. Without, 42 of the signed values differ in the last bit.
        let point = |i: usize| {
            let from_start = f64::from(0.1f32) + step * i as f64;
            let from_end = 1.0 - step * (intervals - i) as f64;
            (if i < intervals.div_ceil(2) { from_start } else { from_end }) as f32
        };
        for i in 0..intervals {
            let value = power * ((point(i) + point(i + 1)) / 2.0);
            map[filled] = value;
            filled += 1;
            if signed {
                map[filled] = -value;
                filled += 1;
            }
        }
    }
    map[filled] = 0.0;
    map[filled + 1] = 1.0;
    map.sort_by(f32::total_cmp);
    map
}
