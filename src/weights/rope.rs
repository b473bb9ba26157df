use super::ModelConfig;

/// How the angles of the position embedding are stretched beyond the length the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor`.
    Linear { factor: f64 },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: usize },
    /// Frequency `j` divided by `factors[j]`: how GGUF files spell any such rule.
    Factors(Vec<f32>),
}

impl ModelConfig {
    /// The `head_dim / 2` angles per position, after any scaling rule.
    ///
    /// `theta^(-2j/head_dim)`, in f32 as transformers computes it: the power is rounded, then inverted.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let plain = (0..self.head_dim / 2).map(|j| {
            let exponent = (2 * j) as f32 / self.head_dim as f32;
            1.0 / (self.rope_theta.powf(f64::from(exponent)) as f32)
        });
        match &self.rope_scaling {
            None => plain.collect(),
            Some(RopeScaling::Linear { factor }) => plain.map(|frequency| frequency / *factor as f32).collect(),
            Some(RopeScaling::Factors(factors)) => plain.zip(factors).map(|(f, factor)| f / factor).collect(),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            }) => {
                let (factor, low, high) = (*factor as f32, *low as f32, *high as f32);
                let original = *original as f32;
                let stretched = |frequency: f32| {
                    let wavelength = std::f32::consts::TAU / frequency;
                    if wavelength > original / low {
                        frequency / factor
                    } else if wavelength < original / high {
                        frequency
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                plain.map(stretched).collect()
            }
        }
    }
}
