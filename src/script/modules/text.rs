//! `text`: numbers and paragraphs as a person reads them.

use rhai::plugin::*;
use rhai::{Array, Engine, NativeCallContext};

use super::{Answer, count, host, number};

#[export_module]
mod functions {
    use super::*;

    /// Returns a number with a fixed count of digits after the point.
    ///
    /// ```rhai
    /// print(text::fixed(2.71828, 2));    // 2.72
    /// ```
    #[rhai_fn(return_raw)]
    pub fn fixed(context: NativeCallContext<'_>, value: Dynamic, digits: i64) -> Answer<String> {
        let value = number(&context, "the value", &value)?;
        let digits = count(&context, "`digits`", digits)?.min(17);
        Ok(format!("{value:.digits$}"))
    }

    /// Returns a probability in [0, 1] as per cent with two significant digits.
    ///
    /// ```rhai
    /// print(text::percent(0.00123));    // 0.12 %
    /// ```
    #[rhai_fn(return_raw)]
    pub fn percent(context: NativeCallContext<'_>, value: Dynamic) -> Answer<String> {
        Ok(show_percent(number(&context, "the value", &value)?))
    }

    /// Returns a whole number with its thousands set apart by spaces.
    ///
    /// ```rhai
    /// print(text::thousands(27904));    // 27 904
    /// ```
    #[rhai_fn(return_raw)]
    pub fn thousands(context: NativeCallContext<'_>, value: Dynamic) -> Answer<String> {
        Ok(show_thousands(number(&context, "the value", &value)?))
    }

    /// Returns a rate as short as it can be written: `2e-4`.
    ///
    /// ```rhai
    /// print(text::scientific(0.0002));    // 2e-4
    /// ```
    #[rhai_fn(return_raw)]
    pub fn scientific(context: NativeCallContext<'_>, value: Dynamic) -> Answer<String> {
        Ok(show_scientific(number(&context, "the value", &value)?))
    }

    /// Returns seconds as minutes and seconds: `1:05`.
    ///
    /// ```rhai
    /// print(text::clock(65));    // 1:05
    /// ```
    #[rhai_fn(return_raw)]
    pub fn clock(context: NativeCallContext<'_>, seconds: Dynamic) -> Answer<String> {
        Ok(show_clock(number(&context, "the time", &seconds)?))
    }

    /// Returns `text` filled up with spaces to `width` characters.
    ///
    /// ```rhai
    /// print(text::left("loss", 10) + "2.71");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn left(context: NativeCallContext<'_>, text: &str, width: i64) -> Answer<String> {
        let width = count(&context, "`width`", width)?.min(1000);
        Ok(format!("{text:<width$}"))
    }

    /// Returns `text` with spaces in front, `width` characters in all.
    ///
    /// ```rhai
    /// print(text::right("2.71", 10));
    /// ```
    #[rhai_fn(return_raw)]
    pub fn right(context: NativeCallContext<'_>, text: &str, width: i64) -> Answer<String> {
        let width = count(&context, "`width`", width)?.min(1000);
        Ok(format!("{text:>width$}"))
    }

    /// Returns the lines of `text`, broken between words at `width` characters.
    ///
    /// ```rhai
    /// for line in text::wrap(model.generate("Once"), 60) { print(line); }
    /// ```
    #[rhai_fn(return_raw)]
    pub fn wrap(context: NativeCallContext<'_>, text: &str, width: i64) -> Answer<Array> {
        let width = count(&context, "`width`", width)?.max(1);
        Ok(lines(text, width).into_iter().map(Dynamic::from).collect())
    }

    /// Returns `text`, its end cut so that it has at most `width` characters.
    ///
    /// ```rhai
    /// print(text::clip("a long line", 6));    // a long…  with the last character an ellipsis
    /// ```
    #[rhai_fn(return_raw)]
    pub fn clip(context: NativeCallContext<'_>, text: &str, width: i64) -> Answer<String> {
        let width = count(&context, "`width`", width)?.max(1);
        if text.chars().count() <= width {
            return Ok(text.to_owned());
        }
        Ok(text.chars().take(width - 1).chain(['…']).collect())
    }

    /// Columns of a page of results: those of the terminal, from 60 to 160; 100 where the output is not a terminal.
    ///
    /// ```rhai
    /// let half = (text::width() - 2) / 2;
    /// ```
    #[rhai_fn(return_raw)]
    pub fn width(context: NativeCallContext<'_>) -> Answer<i64> {
        Ok(host(&context)?.width() as i64)
    }

    /// The quotient of two numbers as a float, so that `1 of 2` is 0.5.
    ///
    /// ```rhai
    /// let share = text::ratio(1, 2);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn ratio(context: NativeCallContext<'_>, a: Dynamic, b: Dynamic) -> Answer<f64> {
        Ok(number(&context, "the first number", &a)? / number(&context, "the second number", &b)?)
    }
}

fn show_percent(value: f64) -> String {
    let percent = value * 100.0;
    if percent == 0.0 || !percent.is_finite() {
        return format!("{percent} %");
    }
    let size = percent.abs().log10().floor();
    if size < -4.0 {
        return format!("{percent:.1e} %");
    }
    // Two significant digits.
    let digits = (1.0 - size).max(0.0) as usize;
    format!("{percent:.digits$} %")
}

/// At most four significant digits: `2e-4`, `1.667e-3`, `0.5`.
pub(super) fn show_scientific(value: f64) -> String {
    let rounded: f64 = format!("{value:.3e}").parse().unwrap_or(value);
    let is_plain = rounded == 0.0 || (0.01..1e4).contains(&rounded.abs());
    if is_plain { format!("{rounded}") } else { format!("{rounded:e}") }
}

pub(super) fn show_clock(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

pub(super) fn show_thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(' ');
        }
        shown.push(digit);
    }
    if value < -0.5 { format!("-{shown}") } else { shown }
}

fn lines(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let fits = line.is_empty() || line.chars().count() + 1 + word.chars().count() <= width;
            if !fits {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        if !line.is_empty() {
            lines.push(line);
        }
    }
    lines
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("text", exported_module!(functions).into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(show_percent(0.123), "12 %");
        assert_eq!(show_percent(0.000_456), "0.046 %");
        assert_eq!(show_percent(1.0), "100 %");
        assert_eq!(show_percent(2.81e-9), "2.8e-7 %");
        assert_eq!(show_scientific(0.0), "0");
        assert_eq!(show_scientific(0.5), "0.5");
        assert_eq!(show_scientific(0.002), "2e-3");
        assert_eq!(show_scientific(0.002 / 1.2), "1.667e-3");
        assert_eq!(show_percent(0.0), "0 %");
        assert_eq!(show_thousands(27904.0), "27 904");
        assert_eq!(show_thousands(904.0), "904");
        assert_eq!(show_thousands(-1000.0), "-1 000");
    }

    #[test]
    fn lines_break_between_words_and_keep_paragraphs() {
        assert_eq!(lines("one two three\n\nfour", 8), ["one two", "three", "four"]);
        assert_eq!(lines("köttbullarna är", 5), ["köttbullarna", "är"]);
        assert!(lines("", 5).is_empty());
    }
}
