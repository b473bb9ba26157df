//! Named options of a function: one table gives the parser, the checks, the messages and the help.
//!
//! ```
//! use unslothify::options;
//! use unslothify::script::options::Callback;
//!
//! options! {
//!     /// What `model.add_lora` takes.
//!     pub LoraOptions for "model.add_lora" {
//!         r: usize = 8, 1..=1024, "rank of the adapters";
//!         lora_alpha: f64 = 8.0, 0.0.., "scale = lora_alpha / r";
//!         kind: String = "lora", ["lora", "rslora"], "how the scale is formed";
//!         layers: Option<Vec<usize>> = None, "only these layers";
//!         steps: usize, 1.., "no default: the caller must give it";
//!         on_step: Option<Callback<1>> = None, "called after each step";
//!     }
//! }
//! assert_eq!(LoraOptions::SCHEMA.function, "model.add_lora");
//! ```
//!
//! `LoraOptions::parse(&map, &context)` reads a script's map: an unknown key, a missing one, a value of the wrong type
//! or outside its range fails with the place of that very key.

mod limit;
mod value;

use rhai::{EvalAltResult, Map, NativeCallContext};

pub use limit::{Above, Limit, above};
pub use value::{Callback, IntoDefault, OneOrMany, OptionValue};

use super::Failure;
use super::names;

/// What a function takes, for help and completion.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    pub function: &'static str,
    pub fields: &'static [Field],
}

/// One option of a [`Schema`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub help: &'static str,
    /// The type in the script's words: "int", "list of string".
    pub kind: fn() -> String,
    /// The default as a script would write it; nothing when the option must be given.
    pub default: Option<fn() -> String>,
    /// The range or the choices; empty when everything of the type will do.
    pub limit: fn() -> String,
}

impl Schema {
    /// Fails on the first key of `map` that is not in the table.
    pub fn check(&self, map: &Map, context: &NativeCallContext<'_>) -> Result<(), Box<EvalAltResult>> {
        let Some(unknown) = map.keys().find(|key| !self.fields.iter().any(|field| field.name == key.as_str())) else {
            return Ok(());
        };
        let message = format!("unknown option `{unknown}` for `{}`", self.function);
        Err(Failure::at(context, message)
            .key(unknown.as_str())
            .label("unknown option")
            .hint(self.suggest(unknown))
            .into())
    }

    fn suggest(&self, unknown: &str) -> String {
        let all: Vec<&str> = self.fields.iter().map(|field| field.name).collect();
        let accepted = format!("accepted: {}", all.join(", "));
        match names::nearest(unknown, all.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? {accepted}"),
            None if all.is_empty() => "it takes no options".to_string(),
            None => accepted,
        }
    }

    /// The error for a required option that is not there.
    pub fn missing(&self, name: &str, context: &NativeCallContext<'_>) -> Box<EvalAltResult> {
        let help = self.fields.iter().find(|field| field.name == name).map_or("", |field| field.help);
        let message = format!("`{}` needs the option `{name}`", self.function);
        Failure::at(context, message).hint(format!("`{name}`: {help}")).into()
    }

    /// The error for an option whose value will not do.
    pub fn wrong(&self, name: &str, what: &str, context: &NativeCallContext<'_>) -> Box<EvalAltResult> {
        let message = format!("option `{name}` of `{}` {what}", self.function);
        Failure::at(context, message).key(name).into()
    }
}

/// Declares a struct of options with its parser and its schema; see the module's documentation.
#[macro_export]
macro_rules! options {
    ($(#[$meta:meta])* $visibility:vis $name:ident for $function:literal {
        $($field:ident : $type:ty $(= $default:expr)? , $($more:expr),+ ;)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        $visibility struct $name { $(pub $field: $type,)* }

        impl $name {
            /// The table itself, for help and completion.
            $visibility const SCHEMA: $crate::script::options::Schema = $crate::script::options::Schema {
                function: $function,
                fields: &[$($crate::script::options::Field {
                    name: stringify!($field),
                    help: $crate::options!(@help $($more),+),
                    kind: || <$type as $crate::script::options::OptionValue>::kind(),
                    default: $crate::options!(@default_text $type $(, $default)?),
                    limit: || $crate::options!(@limit_text $type, $($more),+),
                }),*],
            };

            /// Reads a script's map; every mistake is told with the place of its key.
            #[allow(unused_variables, clippy::allow_attributes)]
            $visibility fn parse(
                map: &::rhai::Map,
                context: &::rhai::NativeCallContext<'_>,
            ) -> ::std::result::Result<Self, ::std::boxed::Box<::rhai::EvalAltResult>> {
                Self::SCHEMA.check(map, context)?;
                Ok(Self { $($field: {
                    match map.get(stringify!($field)) {
                        Some(given) => {
                            let value = <$type as $crate::script::options::OptionValue>::read(given, context)
                                .map_err(|what| Self::SCHEMA.wrong(stringify!($field), &what, context))?;
                            $crate::options!(@check $type, value, what => {
                                return Err(Self::SCHEMA.wrong(stringify!($field), &what, context));
                            }, $($more),+);
                            value
                        }
                        None => $crate::options!(@default $type, Self, $field, context $(, $default)?),
                    }
                },)* })
            }
        }
    };
    (@help $help:expr) => { $help };
    (@help $limit:expr, $help:expr) => { $help };
    (@limit_text $type:ty, $help:expr) => { String::new() };
    (@limit_text $type:ty, $limit:expr, $help:expr) => {
        $crate::script::options::Limit::<<$type as $crate::script::options::OptionValue>::Item>::text(&($limit))
    };
    (@check $type:ty, $value:ident, $what:ident => $fail:block, $help:expr) => {};
    (@check $type:ty, $value:ident, $what:ident => $fail:block, $limit:expr, $help:expr) => {
        let limit = $limit;
        for item in <$type as $crate::script::options::OptionValue>::items(&$value) {
            if let Some($what) = $crate::script::options::Limit::<
                <$type as $crate::script::options::OptionValue>::Item
            >::refuse(&limit, item) $fail
        }
    };
    (@default_text $type:ty) => { None };
    (@default_text $type:ty, $default:expr) => {
        Some(|| {
            let default: $type = $crate::script::options::IntoDefault::<$type>::into_default($default);
            <$type as $crate::script::options::OptionValue>::show(&default)
        })
    };
    (@default $type:ty, $this:ident, $field:ident, $context:ident) => {
        return Err($this::SCHEMA.missing(stringify!($field), $context))
    };
    (@default $type:ty, $this:ident, $field:ident, $context:ident, $default:expr) => {
        $crate::script::options::IntoDefault::<$type>::into_default($default)
    };
}

/// Lets handles of a native type stand in `options!` tables: `handle_option!(Model, "Model")`.
#[macro_export]
macro_rules! handle_option {
    ($type:ty, $name:literal) => {
        impl $crate::script::options::OptionValue for $type {
            type Item = Self;

            fn kind() -> String {
                $name.to_string()
            }

            fn read(value: &::rhai::Dynamic, context: &::rhai::NativeCallContext<'_>) -> Result<Self, String> {
                $crate::script::options::read_handle(value, $name, context)
            }

            fn items(&self) -> Vec<&Self> {
                vec![self]
            }

            fn show(&self) -> String {
                $name.to_string()
            }
        }
    };
}

/// The handle in `value`, or what it is instead; for [`handle_option!`].
pub fn read_handle<T: Clone + Send + Sync + 'static>(
    value: &rhai::Dynamic,
    name: &str,
    context: &NativeCallContext<'_>,
) -> Result<T, String> {
    let wrong =
        |value| format!("must be {}, got {}", names::with_article(name), names::describe(context.engine(), &value));
    value.flatten_clone().try_cast_result().map_err(wrong)
}
