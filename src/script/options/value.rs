//! What an option's value may be, read from a script's value.

use std::ops::Deref;

use rhai::{Dynamic, FnPtr, ImmutableString, Map, NativeCallContext};

use crate::script::names;

/// A type that an `options!` table may use.
pub trait OptionValue: Sized {
    /// What a range or a list of choices speaks of: the element of a list, the value itself otherwise.
    type Item;
    /// The type in the script's words.
    fn kind() -> String;
    /// The value, or what is wrong with it: "must be an int, got string \"8\"".
    fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String>;
    /// What the limit is checked against.
    fn items(&self) -> Vec<&Self::Item>;
    /// As a script would write it.
    fn show(&self) -> String;
}

fn wrong(wanted: &str, value: &Dynamic, context: &NativeCallContext<'_>) -> String {
    format!("must be {}, got {}", names::with_article(wanted), names::describe(context.engine(), value))
}

impl OptionValue for i64 {
    type Item = Self;

    fn kind() -> String {
        "int".to_string()
    }

    fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
        value.as_int().map_err(|_| wrong("int", value, context))
    }

    fn items(&self) -> Vec<&Self> {
        vec![self]
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! unsigned {
    ($($type:ty),*) => {$(
        impl OptionValue for $type {
            type Item = Self;

            fn kind() -> String {
                "int".to_string()
            }

            fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
                let whole = i64::read(value, context)?;
                Self::try_from(whole).map_err(|_| match whole < 0 {
                    true => format!("must not be negative, got {whole}"),
                    false => format!("must be at most {}, got {whole}", Self::MAX),
                })
            }

            fn items(&self) -> Vec<&Self> {
                vec![self]
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
unsigned!(usize, u64, u32);

impl OptionValue for f64 {
    type Item = Self;

    fn kind() -> String {
        "float".to_string()
    }

    fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
        // Scripts write `lora_alpha: 16` as often as `16.0`.
        let number = match value.as_int() {
            Ok(whole) => whole as Self,
            Err(_) => value.as_float().map_err(|_| wrong("float", value, context))?,
        };
        if number.is_finite() { Ok(number) } else { Err(format!("must be a finite number, got {number}")) }
    }

    fn items(&self) -> Vec<&Self> {
        vec![self]
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl OptionValue for bool {
    type Item = Self;

    fn kind() -> String {
        "bool".to_string()
    }

    fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
        value.as_bool().map_err(|_| wrong("bool", value, context))
    }

    fn items(&self) -> Vec<&Self> {
        vec![self]
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl OptionValue for String {
    type Item = Self;

    fn kind() -> String {
        "string".to_string()
    }

    fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
        value.clone().into_string().map_err(|_| wrong("string", value, context))
    }

    fn items(&self) -> Vec<&Self> {
        vec![self]
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl<T: OptionValue> OptionValue for Vec<T> {
    type Item = T::Item;

    fn kind() -> String {
        format!("array of {}", T::kind())
    }

    fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
        let Ok(items) = value.as_array_ref() else {
            return Err(wrong(&Self::kind(), value, context));
        };
        let read = |(at, item)| T::read(item, context).map_err(|what| format!("at index {at} {what}"));
        items.iter().enumerate().map(read).collect()
    }

    fn items(&self) -> Vec<&T::Item> {
        self.iter().flat_map(T::items).collect()
    }

    fn show(&self) -> String {
        format!("[{}]", self.iter().map(T::show).collect::<Vec<_>>().join(", "))
    }
}

impl<T: OptionValue> OptionValue for Option<T> {
    type Item = T::Item;

    fn kind() -> String {
        T::kind()
    }

    fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
        if value.is_unit() { Ok(None) } else { T::read(value, context).map(Some) }
    }

    fn items(&self) -> Vec<&T::Item> {
        self.iter().flat_map(T::items).collect()
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "()".to_string(), T::show)
    }
}

/// A list that may be given as its only element: `target_modules: "all-linear"`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T> Deref for OneOrMany<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T: OptionValue> OptionValue for OneOrMany<T> {
    type Item = T::Item;

    fn kind() -> String {
        format!("{} or array of {0}", T::kind())
    }

    fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
        if value.is_array() {
            return Vec::read(value, context).map(Self);
        }
        match T::read(value, context) {
            Ok(one) => Ok(Self(vec![one])),
            Err(_) => Err(wrong(&Self::kind(), value, context)),
        }
    }

    fn items(&self) -> Vec<&T::Item> {
        self.0.iter().flat_map(T::items).collect()
    }

    fn show(&self) -> String {
        match self.0.as_slice() {
            [one] => one.show(),
            _ => self.0.show(),
        }
    }
}

macro_rules! as_it_is {
    ($($type:ty, $kind:literal, $empty:literal;)*) => {$(
        impl OptionValue for $type {
            type Item = Self;

            fn kind() -> String {
                $kind.to_string()
            }

            fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
                value.flatten_clone().try_cast_result().map_err(|value| wrong($kind, &value, context))
            }

            fn items(&self) -> Vec<&Self> {
                vec![self]
            }

            fn show(&self) -> String {
                $empty.to_string()
            }
        }
    )*};
}
as_it_is! {
    Map, "map", "#{}";
    ImmutableString, "string", "\"\"";
}

impl OptionValue for Dynamic {
    type Item = Self;

    fn kind() -> String {
        "anything".to_string()
    }

    fn read(value: &Dynamic, _: &NativeCallContext<'_>) -> Result<Self, String> {
        Ok(value.flatten_clone())
    }

    fn items(&self) -> Vec<&Self> {
        vec![self]
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A function that takes `N` arguments, checked when the option is read and not when it is first called.
#[derive(Clone, Debug)]
pub struct Callback<const N: usize>(pub FnPtr);

impl<const N: usize> OptionValue for Callback<N> {
    type Item = Self;

    fn kind() -> String {
        match N {
            1 => "function of 1 argument".to_string(),
            _ => format!("function of {N} arguments"),
        }
    }

    fn read(value: &Dynamic, context: &NativeCallContext<'_>) -> Result<Self, String> {
        let Some(function) = value.flatten_clone().try_cast::<FnPtr>() else {
            return Err(wrong(&Self::kind(), value, context));
        };
        let taken: Vec<usize> = names::arities(context, function.fn_name())
            .into_iter()
            .filter_map(|count| count.checked_sub(function.curry().len()))
            .collect();
        match taken.as_slice() {
            // A native, or a function Rhai will look for when it is called.
            [] => Ok(Self(function)),
            _ if taken.contains(&N) => Ok(Self(function)),
            [first, ..] => {
                let what = if function.is_anonymous() { "this closure" } else { "this function" };
                let plural = if N == 1 { "" } else { "s" };
                Err(format!("must take {N} argument{plural}; {what} takes {first}"))
            }
        }
    }

    fn items(&self) -> Vec<&Self> {
        vec![self]
    }

    fn show(&self) -> String {
        "a function".to_string()
    }
}

/// Lets a table write `"linear"` where the field is a `String`, and plain lists of texts.
pub trait IntoDefault<T> {
    fn into_default(self) -> T;
}

impl<T> IntoDefault<T> for T {
    fn into_default(self) -> T {
        self
    }
}

impl IntoDefault<String> for &'static str {
    fn into_default(self) -> String {
        self.to_string()
    }
}

impl IntoDefault<Vec<String>> for &[&'static str] {
    fn into_default(self) -> Vec<String> {
        self.iter().map(ToString::to_string).collect()
    }
}

impl<const N: usize> IntoDefault<Vec<String>> for [&'static str; N] {
    fn into_default(self) -> Vec<String> {
        self.iter().map(ToString::to_string).collect()
    }
}

impl IntoDefault<OneOrMany<String>> for &'static str {
    fn into_default(self) -> OneOrMany<String> {
        OneOrMany(vec![self.to_string()])
    }
}
