#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

#[derive(serde::Deserialize)]
struct Case {
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    repetition_penalty: f64,
    seen: Vec<u32>,
    logits: Vec<f32>,
    probabilities: Vec<f64>,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../tests/fixtures/sampling.json")).unwrap()
}

fn sampling(case: &Case) -> Sampling {
    let Case { temperature, top_k, top_p, repetition_penalty, .. } = *case;
    Sampling { temperature, top_k, top_p, repetition_penalty, seed: 5 }
}

fn worst(case: &Case, sampling: &Sampling) -> f64 {
    let mut got = vec![0.0; case.logits.len()];
    for (token, probability) in sampling.distribution(&case.logits, &case.seen).unwrap() {
        got[token as usize] = probability;
    }
    got.iter().zip(&case.probabilities).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn distributions_equal_the_numpy_reference() {
    let cases = cases();
    assert!(cases.len() >= 20);
    for (index, case) in cases.iter().enumerate() {
        let worst = worst(case, &sampling(case));
        assert!(worst < 1e-6, "case {index}: {worst}");
    }
}

#[test]
fn a_wrong_setting_fails_the_same_comparison() {
    let changed = cases().iter().filter(|case| case.temperature == 1.0 && case.top_p == Some(0.9)).all(|case| {
        let wrong = Sampling { top_p: Some(0.8), ..sampling(case) };
        worst(case, &wrong) > 1e-3
    });
    assert!(changed);
}

#[test]
fn draws_follow_the_distribution_and_depend_on_seed_and_position_alone() {
    let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
    let logits = [0.0f32, 1.0, 2.0, f32::NEG_INFINITY];
    let expected = sampling.distribution(&logits, &[]).unwrap();
    let n = 20_000u64;
    let mut counts = [0usize; 4];
    for position in 0..n {
        counts[sampling.choose(&logits, &[], position).unwrap() as usize] += 1;
    }
    for (token, probability) in expected {
        let share = counts[token as usize] as f64 / n as f64;
        assert!((share - probability).abs() < 0.015, "{token}: {share} {probability}");
    }
    assert_eq!(counts[3], 0);
    let draw = |seed| -> Vec<u32> {
        let sampling = Sampling { seed, ..sampling };
        (0..40).map(|position| sampling.choose(&logits, &[], position).unwrap()).collect()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn greedy_takes_the_first_of_equals_and_broken_logits_are_an_error() {
    let greedy = Sampling::default();
    assert_eq!(greedy.choose(&[1.0, 3.0, 3.0], &[], 0).unwrap(), 1);
    assert!(matches!(greedy.choose(&[1.0, f32::NAN], &[], 0), Err(Error::NotFinite { token: 1 })));
    assert!(matches!(greedy.choose(&[], &[], 0), Err(Error::NoLogits)));
    let all_gone = Sampling { temperature: 1.0, ..greedy };
    assert!(matches!(all_gone.choose(&[f32::NEG_INFINITY; 3], &[], 0), Err(Error::NoLogits)));
    let tiny_p = Sampling { temperature: 1.0, top_p: Some(1e-9), top_k: Some(0), ..greedy };
    assert_eq!(tiny_p.choose(&[0.0, 5.0, 1.0], &[], 0).unwrap(), 1);
    for temperature in [1e-30, 1e-38, 1e-300, f64::MIN_POSITIVE] {
        let cold = Sampling { temperature, ..greedy };
        assert_eq!(cold.choose(&[5.0, 0.5, -3.0], &[], 0).unwrap(), 0, "{temperature:e}");
    }
}
