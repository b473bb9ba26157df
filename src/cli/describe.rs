//! `unslothify describe RECIPE`, and what `RECIPE --help` shows.

use clap::{Args, CommandFactory};

use super::arguments::{Arguments, Describe, Run};
use super::output;
use crate::recipe::Description;
use crate::script::{Session, SessionOptions};

pub(super) fn main(arguments: &Describe) -> anyhow::Result<()> {
    let described = Session::new(SessionOptions::default()).describe(&arguments.recipe).map_err(|failure| *failure)?;
    if arguments.json {
        return output::print(&format!("{:#}\n", described.to_json()));
    }
    output::print(&text(&described))
}

/// `unslothify RECIPE --help`
pub(super) fn recipe_help(arguments: &Run) -> anyhow::Result<()> {
    let Some(recipe) = &arguments.recipe else { return general_help() };
    let described = Session::new(SessionOptions::default()).describe(recipe).map_err(|failure| *failure)?;
    let options = Run::augment_args(clap::Command::new("unslothify"))
        .disable_help_flag(true)
        .help_template("{options}")
        .render_help()
        .to_string();
    output::print(&format!("{}\nOptions:\n{}\n", text(&described), options.trim_end()))
}

/// `unslothify --help`
pub(super) fn general_help() -> anyhow::Result<()> {
    output::print(&Arguments::command().render_help().to_string())
}

fn text(described: &Description) -> String {
    let mut text = String::new();
    if !described.doc.is_empty() {
        text.push_str(&described.doc);
        text.push_str("\n\n");
    }
    text.push_str(&format!("Usage: unslothify {} [--set NAME=VALUE]... [OPTIONS]\n", described.recipe));
    if !described.parameters.is_empty() {
        text.push_str(&format!("\nParameters:\n{}", described.parameter_table()));
    }
    if !described.imports.is_empty() {
        text.push_str(&format!("\nImports: {}\n", described.imports.join(", ")));
    }
    text
}
