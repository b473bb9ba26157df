//! The learning rate that suits a model's size.

/// Peak LoRA rate at `REFERENCE_HIDDEN` (Mistral-7B): the value QLoRA recipes settled on.
const REFERENCE_RATE: f64 = 2e-4;
const REFERENCE_HIDDEN: f64 = 4096.0;
/// Small models want larger rates; the exponent is that of published LoRA sweeps over model widths.
const EXPONENT: f64 = 0.78;

/// The built-in base's name and its peak rate, found by `stdlib/base/make/sweep.rhai`; the table is in the base's card.
const BUILT_IN: (&str, f64) = ("builtin:tiny-mistral", 7e-4);

/// A good LoRA peak rate for 60 to a few hundred AdamW steps: 2e-4 at hidden size 4096.
///
/// The built-in base has a measured constant; any other size gets `2e-4 · (4096 / hidden)^0.78`, to two digits.
pub fn learning_rate(origin: &str, hidden_size: usize) -> f64 {
    if origin == BUILT_IN.0 {
        return BUILT_IN.1;
    }
    let rate = REFERENCE_RATE * (REFERENCE_HIDDEN / hidden_size.max(1) as f64).powf(EXPONENT);
    let digits = 10f64.powf(rate.log10().floor() - 1.0);
    (rate / digits).round() * digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sizes() {
        assert!((learning_rate("mistralai/Mistral-7B-v0.3", 4096) - 2e-4).abs() < 1e-12);
        assert!((learning_rate("smollm2.gguf", 576) - 9.2e-4).abs() < 1e-9);
        assert!(learning_rate(BUILT_IN.0, 256) > 0.0);
    }
}
