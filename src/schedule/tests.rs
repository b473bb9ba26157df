#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Map, Value};

use super::*;

const GOLDEN: &str = include_str!("../../tests/fixtures/lr_schedules.json");
const EDGE: &str = include_str!("../../tests/fixtures/lr_schedules_edge.json");

fn options(lr: f64, warmup: f64, total: f64) -> ScheduleOptions {
    ScheduleOptions { lr, num_warmup_steps: Some(warmup), num_training_steps: Some(total), ..Default::default() }
}

fn with(mut base: ScheduleOptions, more: &Map<String, Value>) -> ScheduleOptions {
    for (key, value) in more {
        let number = value.as_f64();
        let text = value.as_str().map(str::to_owned);
        match key.as_str() {
            "num_cycles" => base.num_cycles = number,
            "power" => base.power = number,
            "lr_end" => base.lr_end = number,
            "min_lr" => base.min_lr = number,
            "min_lr_rate" => base.min_lr_rate = number,
            "num_decay_steps" => base.num_decay_steps = number,
            "num_stable_steps" => base.num_stable_steps = number,
            "warmup_type" => base.warmup_type = text,
            "decay_type" => base.decay_type = text,
            "min_lr_ratio" => base.min_lr_ratio = number,
            "timescale" => base.timescale = number,
            "warmup_lr_rate" => base.warmup_lr_rate = number,
            other => panic!("no option {other}"),
        }
    }
    base
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_golden_table_is_met_to_1e_minus_6() {
    let mut names = Vec::new();
    for (title, values) in json(GOLDEN).as_object().unwrap() {
        let (name, more) = match title.split_once('(') {
            Some((name, _)) => (name, title.as_str()),
            None => (title.as_str(), ""),
        };
        let more = match more {
            "" => "{}",
            "cosine_with_restarts(num_cycles=2)" => r#"{"num_cycles": 2}"#,
            "polynomial(lr=1e-3,lr_end=1e-7,power=1)" => r#"{"lr_end": 1e-7, "power": 1}"#,
            "polynomial(lr=1e-3,lr_end=1e-4,power=2)" => r#"{"lr_end": 1e-4, "power": 2}"#,
            "cosine_with_min_lr(min_lr_rate=0.1)" | "cosine_warmup_with_min_lr(min_lr_rate=0.1)" => {
                r#"{"min_lr_rate": 0.1}"#
            }
            "warmup_stable_decay(decay=6,cosine)" => r#"{"num_decay_steps": 6, "decay_type": "cosine"}"#,
            "warmup_stable_decay(decay=6,linear,min=0.1)" => {
                r#"{"num_decay_steps": 6, "decay_type": "linear", "min_lr_ratio": 0.1}"#
            }
            other => panic!("no options for {other}"),
        };
        let options = with(options(1e-3, 4.0, 20.0), json(more).as_object().unwrap());
        let schedule = Schedule::get(name, &options).unwrap();
        let values = values.as_array().unwrap();
        assert_eq!(values.len(), 21);
        for (t, value) in values.iter().enumerate() {
            let (got, wanted) = (schedule.factor(t as u64), value.as_f64().unwrap());
            assert!((got - wanted).abs() <= 1e-6, "{title} at {t}: {got}, wanted {wanted}");
            assert!((schedule.at(t as u64) - 1e-3 * got).abs() < 1e-18);
        }
        names.push(name.to_owned());
    }
    for name in NAMES {
        assert!(names.iter().any(|n| n == name), "{name} has no golden values");
    }
}

#[test]
fn what_is_allowed_and_hardly_meant_is_remarked() {
    let remark = |name, warmup, total| Schedule::get(name, &options(1e-3, warmup, total)).unwrap().remark();
    assert_eq!(remark("linear", 10.0, 60.0), None);
    assert_eq!(remark("linear", 10.0, 10.0), Some(Remark::NeverAtPeak { warmup: 10.0, total: 10.0 }));
    assert_eq!(remark("constant_with_warmup", 10.0, 5.0), Some(Remark::NeverAtPeak { warmup: 10.0, total: 5.0 }));
    assert_eq!(remark("constant", 10.0, 5.0), Some(Remark::NoWarmup { warmup: 10.0 }));
    assert_eq!(remark("constant", 0.0, 5.0), None);
}

#[test]
fn unusual_options_give_what_transformers_gives() {
    for case in json(EDGE)["schedules"].as_array().unwrap() {
        let mut base = options(case["lr"].as_f64().unwrap(), case["num_warmup_steps"].as_f64().unwrap(), 0.0);
        base.num_training_steps = case["num_training_steps"].as_f64();
        let options = with(base, case["options"].as_object().unwrap());
        let schedule = Schedule::get(case["name"].as_str().unwrap(), &options).unwrap();
        for (t, value) in case["rates"].as_array().unwrap().iter().enumerate() {
            let (got, wanted) = (schedule.at(t as u64), value.as_f64().unwrap());
            assert!((got - wanted).abs() <= 1e-15, "{case} at {t}: {got}");
        }
    }
}

#[test]
fn a_plateau_lowers_the_rate_when_torch_does() {
    for case in json(EDGE)["plateaus"].as_array().unwrap() {
        let mut options = PlateauOptions { lr: case["lr"].as_f64().unwrap(), ..Default::default() };
        for (key, value) in case["options"].as_object().unwrap() {
            match key.as_str() {
                "patience" => options.patience = value.as_u64().unwrap(),
                "cooldown" => options.cooldown = value.as_u64().unwrap(),
                "factor" => options.factor = value.as_f64().unwrap(),
                "threshold" => options.threshold = value.as_f64().unwrap(),
                "min_lr" => options.min_lr = value.as_f64().unwrap(),
                "mode" => options.mode = PlateauMode::Max,
                "threshold_mode" => options.threshold_mode = ThresholdMode::Absolute,
                other => panic!("no option {other}"),
            }
        }
        let mut plateau = Plateau::new(options.clone()).unwrap();
        let metrics = case["metrics"].as_array().unwrap();
        for (i, (metric, rate)) in metrics.iter().zip(case["rates"].as_array().unwrap()).enumerate() {
            // A restored copy continues as the original does.
            let mut resumed = Plateau::new(options.clone()).unwrap();
            resumed.restore(plateau.state().clone());
            let metric = metric.as_f64().unwrap_or(f64::NAN);
            let got = plateau.step(metric);
            assert!((got - rate.as_f64().unwrap()).abs() <= 1e-18, "{case} at {i}: {got}");
            assert_eq!(resumed.step(metric), got);
            assert_eq!(plateau.lr(), got);
        }
    }
}

#[test]
fn an_unknown_name_lists_the_schedules_and_the_nearest() {
    let error = Schedule::get("cosin", &options(1.0, 0.0, 1.0)).unwrap_err().to_string();
    assert!(error.starts_with("unknown schedule `cosin`, did you mean `cosine`?; schedules: constant, "), "{error}");
    let error = Schedule::get("Linear", &options(1.0, 0.0, 1.0)).unwrap_err();
    assert_eq!(error, Error::UnknownName { name: "Linear".to_owned(), nearest: Some("linear") });
    let error = Schedule::get("", &options(1.0, 0.0, 1.0)).unwrap_err();
    assert_eq!(error, Error::UnknownName { name: String::new(), nearest: None });
    assert_eq!(Schedule::get("reduce_lr_on_plateau", &options(1.0, 0.0, 1.0)).unwrap_err(), Error::Plateau);
}

#[test]
fn options_that_are_not_taken_or_missing_are_named() {
    let mut o = options(1e-3, 0.0, 10.0);
    o.power = Some(2.0);
    let error = Schedule::get("linear", &o).unwrap_err().to_string();
    assert_eq!(
        error,
        "schedule `linear` does not take `power`; it takes only lr, num_warmup_steps, num_training_steps"
    );
    let error = Schedule::get("cosine", &o).unwrap_err().to_string();
    assert!(error.ends_with("it takes lr, num_warmup_steps, num_training_steps, num_cycles"), "{error}");

    let bare = ScheduleOptions { lr: 1e-3, ..Default::default() };
    assert_eq!(Schedule::get("constant", &bare).unwrap().at(0), 1e-3);
    assert_eq!(Schedule::get("constant_with_warmup", &bare).unwrap().at(0), 1e-3);
    for name in ["linear", "cosine", "cosine_with_restarts", "polynomial"] {
        assert_eq!(
            Schedule::get(name, &bare).unwrap_err(),
            Error::Missing {
                schedule: Schedule::get(name, &options(1.0, 0.0, 1.0)).unwrap().name(),
                option: "num_training_steps"
            }
        );
    }
    let error = Schedule::get("cosine_with_min_lr", &options(1.0, 0.0, 1.0)).unwrap_err();
    assert_eq!(error, Error::NoMinimum { schedule: "cosine_with_min_lr" });
    let mut both = options(1.0, 0.0, 1.0);
    (both.min_lr, both.min_lr_rate) = (Some(0.1), Some(0.1));
    assert!(matches!(Schedule::get("cosine_with_min_lr", &both), Err(Error::TwoMinima { .. })));
    let error = Schedule::get("warmup_stable_decay", &options(1.0, 0.0, 1.0)).unwrap_err();
    assert_eq!(error, Error::Missing { schedule: "warmup_stable_decay", option: "num_decay_steps" });
}

/// Every numeric option, one at a time, set to nonsense.
#[test]
fn nonsense_numbers_are_errors_with_the_option_in_the_message() {
    let takers = [
        ("cosine", "num_cycles"),
        ("polynomial", "power"),
        ("polynomial", "lr_end"),
        ("cosine_with_min_lr", "min_lr"),
        ("cosine_with_min_lr", "min_lr_rate"),
        ("warmup_stable_decay", "num_decay_steps"),
        ("warmup_stable_decay", "num_stable_steps"),
        ("warmup_stable_decay", "min_lr_ratio"),
        ("inverse_sqrt", "timescale"),
    ];
    for value in [-1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for (name, option) in takers {
            let mut o = options(1.0, 0.0, 10.0);
            match option {
                "num_cycles" => o.num_cycles = Some(value),
                "power" => o.power = Some(value),
                "lr_end" => o.lr_end = Some(value),
                "min_lr" => o.min_lr = Some(value),
                "min_lr_rate" => o.min_lr_rate = Some(value),
                "num_decay_steps" => o.num_decay_steps = Some(value),
                "num_stable_steps" => (o.num_decay_steps, o.num_stable_steps) = (Some(1.0), Some(value)),
                "min_lr_ratio" => (o.num_decay_steps, o.min_lr_ratio) = (Some(1.0), Some(value)),
                _ => o.timescale = Some(value),
            }
            let error = Schedule::get(name, &o).unwrap_err().to_string();
            assert!(error.contains(option) && error.contains(name), "{name} {option} {value}: {error}");
        }
        for (lr, warmup, total) in [(value, 0.0, 10.0), (1.0, value, 10.0), (1.0, 0.0, value)] {
            let error = Schedule::get("linear", &options(lr, warmup, total)).unwrap_err();
            assert!(matches!(error, Error::Value { .. }), "{error}");
        }
    }
    for (warmup, total) in [(2.5, 10.0), (0.0, 10.5), (0.0, 1e300)] {
        assert!(matches!(Schedule::get("linear", &options(1.0, warmup, total)), Err(Error::Value { .. })));
    }
    let mut o = options(1e-3, 0.0, 10.0);
    o.min_lr = Some(2e-3);
    assert!(matches!(Schedule::get("cosine_with_min_lr", &o), Err(Error::Value { option: "min_lr", .. })));
    let mut o = options(1e-3, 0.0, 10.0);
    (o.num_decay_steps, o.warmup_type) = (Some(1.0), Some("lnear".to_owned()));
    assert!(matches!(Schedule::get("warmup_stable_decay", &o), Err(Error::Shape { option: "warmup_type", .. })));
}

#[test]
fn schedules_that_cannot_decay_say_so() {
    let error = Schedule::get("polynomial", &options(1e-7, 0.0, 10.0)).unwrap_err();
    assert_eq!(error, Error::EndNotSmaller { lr_end: 1e-7, lr: 1e-7 });
    assert_eq!(Schedule::get("polynomial", &options(1e-3, 5.0, 5.0)).unwrap_err(), Error::NoDecay { steps: 5.0 });
    let mut o = options(1e-3, 4.0, 9.0);
    o.num_decay_steps = Some(6.0);
    assert_eq!(Schedule::get("warmup_stable_decay", &o).unwrap_err(), Error::TooLong { sum: 10.0, total: 9.0 });
}

#[test]
fn a_plateau_refuses_nonsense() {
    let bad = [
        PlateauOptions { lr: -1.0, ..Default::default() },
        PlateauOptions { lr: f64::NAN, ..Default::default() },
        PlateauOptions { factor: 1.0, ..Default::default() },
        PlateauOptions { factor: -0.1, ..Default::default() },
        PlateauOptions { threshold: f64::INFINITY, ..Default::default() },
        PlateauOptions { min_lr: -1.0, ..Default::default() },
        PlateauOptions { eps: f64::NAN, ..Default::default() },
    ];
    for options in bad {
        assert!(matches!(Plateau::new(options), Err(Error::Value { schedule: "reduce_lr_on_plateau", .. })));
    }
}

#[test]
fn warmup_is_a_number_of_steps_or_a_share() {
    assert_eq!(warmup_steps(0.1, 63.0), 7.0);
    assert_eq!(warmup_steps(10.0, 63.0), 10.0);
    assert_eq!(warmup_steps(0.0, 63.0), 0.0);
    let share = Schedule::get("linear", &options(1.0, 0.1, 60.0)).unwrap();
    let steps = Schedule::get("linear", &options(1.0, 6.0, 60.0)).unwrap();
    assert!((0..70).all(|t| share.at(t) == steps.at(t)));
}

/// No option that is accepted makes a rate that is negative, infinite or not a number.
#[test]
fn every_accepted_schedule_stays_finite_and_not_negative() {
    for name in NAMES {
        for warmup in [0.0, 1.0, 7.0, 20.0] {
            for total in [0.0, 1.0, 7.0, 12.0] {
                for extra in [0.0, 0.3, 1.0, 3.0, 50.0] {
                    let mut o = options(1e-3, warmup, total);
                    match name {
                        "cosine" | "cosine_with_restarts" => o.num_cycles = Some(extra),
                        "polynomial" => o.power = Some(extra),
                        "inverse_sqrt" => o.timescale = Some(extra),
                        "cosine_with_min_lr" => o.min_lr_rate = Some(extra),
                        "cosine_warmup_with_min_lr" => (o.min_lr, o.warmup_lr_rate) = (Some(1e-4), Some(extra)),
                        "warmup_stable_decay" => {
                            (o.num_decay_steps, o.decay_type) = (Some(extra.floor()), Some("1-sqrt".to_owned()));
                        }
                        _ => {}
                    }
                    if let Ok(schedule) = Schedule::get(name, &o) {
                        for t in (0..40).chain([u64::MAX]) {
                            let rate = schedule.at(t);
                            assert!(rate.is_finite() && rate >= 0.0, "{name} {o:?} at {t}: {rate}");
                        }
                    }
                }
            }
        }
    }
}
