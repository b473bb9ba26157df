//! The library written in Rhai, carried in the binary.

use std::borrow::Cow;

use rust_embed::RustEmbed;

/// `stdlib/std/*.rhai`, imported as `std/NAME`.
#[derive(RustEmbed)]
#[folder = "stdlib/std"]
struct Library;

/// The text of `std/NAME`.
pub(super) fn text(name: &str) -> Option<String> {
    let file = Library::get(&format!("{name}.rhai"))?;
    match file.data {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(str::to_string),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok(),
    }
}

/// The names that can be imported, without `std/`.
pub(super) fn names() -> Vec<String> {
    Library::iter().filter_map(|file| file.strip_suffix(".rhai").map(str::to_string)).collect()
}
