//! Ranges and choices of options.

use std::fmt::Display;
use std::ops::{RangeFrom, RangeInclusive};

/// What values of an option may be.
pub trait Limit<T: ?Sized> {
    /// What is wrong with `value`: "must be from 1 to 1024, got 0"; nothing if it will do.
    fn refuse(&self, value: &T) -> Option<String>;
    /// The range or the choices, in help.
    fn text(&self) -> String;
}

impl<T: PartialOrd + Display> Limit<T> for RangeInclusive<T> {
    fn refuse(&self, value: &T) -> Option<String> {
        (!self.contains(value)).then(|| format!("must be from {} to {}, got {value}", self.start(), self.end()))
    }

    fn text(&self) -> String {
        format!("{} to {}", self.start(), self.end())
    }
}

impl<T: PartialOrd + Display> Limit<T> for RangeFrom<T> {
    fn refuse(&self, value: &T) -> Option<String> {
        (!self.contains(value)).then(|| format!("must be at least {}, got {value}", self.start))
    }

    fn text(&self) -> String {
        format!("at least {}", self.start)
    }
}

/// An open lower bound, see [`above`].
#[derive(Clone, Copy, Debug)]
pub struct Above(f64);

/// Everything greater than `bound`, which itself is refused.
pub fn above(bound: f64) -> Above {
    Above(bound)
}

impl Limit<f64> for Above {
    fn refuse(&self, value: &f64) -> Option<String> {
        (*value <= self.0).then(|| format!("must be above {}, got {value}", self.0))
    }

    fn text(&self) -> String {
        format!("above {}", self.0)
    }
}

impl<const N: usize> Limit<String> for [&'static str; N] {
    fn refuse(&self, value: &String) -> Option<String> {
        if self.contains(&value.as_str()) {
            return None;
        }
        let near = crate::script::names::nearest(value, self.iter().copied());
        let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        Some(format!("must be one of {}, got \"{value}\"{near}", self.text()))
    }

    fn text(&self) -> String {
        self.join(" | ")
    }
}
