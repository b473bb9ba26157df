//! Activations, logits, log-probabilities, losses and greedy texts against transformers.

use unslothify::engine::{Engine, Mode};
use unslothify::kernels::{Backend, Cpu, Reference};

use super::fixture::{CASES, Case, RANKS, Worst, max_error};

/// Largest difference allowed, as a part of the largest expected value.
const ACTIVATIONS: f64 = 2e-5;
const LOSS: f64 = 1e-6;

/// Columns `from .. from + width` of a matrix with `columns` columns.
fn columns(values: &[f32], columns: usize, from: usize, width: usize) -> Vec<f32> {
    values.chunks_exact(columns).flat_map(|row| &row[from..from + width]).copied().collect()
}

/// Every intermediate the fixture names, cut out of what the engine kept.
fn activations<B: Backend>(engine: &mut Engine<B>, case: &Case) -> Worst {
    let rows = case.rows(0);
    let config = engine.config().clone();
    let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let wide = config.intermediate_size;
    let mut worst = Worst::default();
    for traced in engine.trace(&rows.batch()).unwrap() {
        let parts: Vec<(&str, usize, usize)> = match traced.name.rsplit('.').next().unwrap() {
            "qkv" => vec![("q", 0, q), ("k", q, kv), ("v", q + kv, kv)],
            "gate_up" => vec![("gate", 0, wide), ("up", wide, wide)],
            other => vec![(other, 0, traced.columns)],
        };
        for (name, from, width) in parts {
            let full = match traced.name.rsplit_once('.') {
                Some((layer, _)) => format!("{layer}.{name}"),
                None => name.to_owned(),
            };
            let got = columns(&traced.values, traced.columns, from, width);
            worst.see(&full, max_error(&got, case.expect(&full)));
        }
    }
    worst
}

fn logits<B: Backend>(engine: &mut Engine<B>, case: &Case) -> f64 {
    max_error(&engine.logits(&case.rows(0).batch()).unwrap(), case.expect("logits"))
}

fn loss<B: Backend>(engine: &mut Engine<B>, case: &Case) -> f64 {
    let rows = case.rows(0);
    let got = engine.forward(&rows.batch(), Mode::Evaluate, rows.target_count() as f64).unwrap();
    (got - case.facts.loss).abs() / case.facts.loss
}

fn check<B: Backend>(backend: impl Fn() -> B) {
    let (mut all_logits, mut all_logp, mut all_loss) = (Worst::default(), Worst::default(), Worst::default());
    let mut inside = Worst::default();
    for name in CASES.into_iter().chain(RANKS) {
        let case = Case::open(name);
        let mut engine = case.engine(backend());
        if CASES.contains(&name) {
            let worst = activations(&mut engine, &case);
            // input, norm1, q, k, v, attention, o, middle, norm2, gate, up, h and down of every layer, final norm
            assert_eq!(worst.compared, 13 * engine.config().num_hidden_layers + 1, "{name}: intermediates compared");
            inside.see(format!("{name} {}", worst.at), worst.error);
        }
        all_logits.see(name, logits(&mut engine, &case));
        let logp: Vec<f32> =
            engine.log_probs(&case.rows(0).batch()).unwrap().into_iter().map(|value| value as f32).collect();
        all_logp.see(name, max_error(&logp, case.expect("logp")));
        all_loss.see(name, loss(&mut engine, &case));
    }
    inside.within("activations", ACTIVATIONS);
    all_logits.within("logits", ACTIVATIONS);
    all_logp.within("log-probabilities", ACTIVATIONS);
    all_loss.within("loss", LOSS);
}

#[test]
fn the_cpu_forward_pass_equals_transformers() {
    check(|| Cpu::new(Some(2)));
}

#[test]
fn the_reference_forward_pass_equals_transformers() {
    check(Reference::new);
}

#[test]
fn a_wrong_epsilon_theta_or_window_is_seen() {
    let edits: [(&str, &'static str, &str, &str); 4] = [
        ("eps", "untied", r#""rms_norm_eps": 1e-05"#, r#""rms_norm_eps": 1e-06"#),
        ("theta", "untied", r#""rope_theta": 10000.0"#, r#""rope_theta": 10100.0"#),
        ("window off by one", "window", r#""sliding_window": 8"#, r#""sliding_window": 9"#),
        ("no window", "texts", r#""sliding_window": 8"#, r#""sliding_window": null"#),
    ];
    for (what, name, from, to) in edits {
        let case = Case::with_config(name, |config| {
            assert!(config.contains(from), "{name}/config.json has no {from}");
            config.replace(from, to)
        });
        let mut engine = case.engine(Cpu::new(Some(1)));
        let error = logits(&mut engine, &case);
        assert!(error > 2.0 * ACTIVATIONS, "{what}: logits differ by {error:.1e} only");
        let error = loss(&mut engine, &case);
        assert!(error > 2.0 * LOSS, "{what}: the loss differs by {error:.1e} only");
    }
}

#[test]
fn the_adapter_counts() {
    for name in CASES {
        let case = Case::open(name);
        let mut engine = case.base(Cpu::new(Some(1)));
        assert!(logits(&mut engine, &case) > 0.05, "{name}: the base alone gives the adapted logits");
    }
}

#[test]
fn twenty_greedy_tokens_equal_transformers() {
    for name in CASES {
        let case = Case::open(name);
        let mut engine = case.engine(Cpu::new(Some(2)));
        let mut cache = engine.cache();
        let mut next = case.facts.prompt.clone();
        let mut generated = Vec::new();
        while generated.len() < case.facts.generated.len() {
            let logits = engine.decode(&next, &mut cache).unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            generated.push(best);
            next = vec![best];
        }
        assert_eq!(generated, case.facts.generated, "{name}");
    }
}
