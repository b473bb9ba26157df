//! What can stand on the command line.

use std::path::PathBuf;

use anstream::{AutoStream, ColorChoice};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::script::Device;

/// Compose, run and share LoRA fine-tunes as Rhai recipes.
#[derive(Debug, Parser)]
#[command(
    name = "unslothify",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_flag = true,
    disable_help_subcommand = true,
    override_usage = "unslothify RECIPE [--set NAME=VALUE]... [OPTIONS]\n       unslothify RECIPE --help      the recipe's own parameters\n       unslothify <COMMAND>\n       unslothify < RECIPE"
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: Run,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a recipe; the same as naming it alone
    #[command(disable_help_flag = true)]
    Run(Run),
    /// Tell a recipe's parameters and imports without running it
    Describe(Describe),
    /// Tell what this machine has to compute with, where models and runs go, and what is missing
    Doctor(Doctor),
}

/// `unslothify RECIPE …`, `unslothify run RECIPE …`
#[derive(Args, Debug)]
pub(super) struct Run {
    /// The recipe to run; without it, a script is read from standard input
    #[arg(value_name = "RECIPE")]
    pub recipe: Option<PathBuf>,
    /// Set a parameter of the recipe
    #[arg(long, value_name = "NAME=VALUE", action = clap::ArgAction::Append)]
    pub set: Vec<String>,
    /// Set parameters from a JSON file
    #[arg(long, value_name = "FILE")]
    pub params: Option<PathBuf>,
    /// Where run folders are made
    #[arg(long, value_name = "DIR", default_value = "outputs", env = "UNSLOTHIFY_OUT", hide_env = true)]
    pub out: PathBuf,
    /// Where to compute: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(
        long,
        value_name = "DEVICE",
        default_value = "auto",
        env = "UNSLOTHIFY_DEVICE",
        hide_env = true,
        value_parser = device
    )]
    pub device: Device,
    /// How many threads to use [default: all cores]
    #[arg(long, value_name = "N", env = "UNSLOTHIFY_THREADS", hide_env = true, value_parser = threads)]
    pub threads: Option<usize>,
    /// Show results and errors only
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub color: Color,
    /// Show the parameters of the recipe, or this help
    #[arg(long, short)]
    pub help: bool,
}

/// `unslothify doctor`
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// Where run folders are made
    #[arg(long, value_name = "DIR", default_value = "outputs", env = "UNSLOTHIFY_OUT", hide_env = true)]
    pub out: PathBuf,
}

/// `unslothify describe RECIPE`
#[derive(Args, Debug)]
pub(super) struct Describe {
    /// The recipe to describe
    pub recipe: PathBuf,
    /// Print a JSON Schema of the parameters
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub color: Color,
}

/// Whether reports are coloured.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Color {
    /// Colour reports
    #[arg(long, value_name = "WHEN", default_value = "auto", env = "UNSLOTHIFY_COLOR", hide_env = true)]
    pub color: When,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum When {
    Auto,
    Always,
    Never,
}

impl Arguments {
    /// Is standard error to be coloured? `auto` honours NO_COLOR, CLICOLOR_FORCE and TERM=dumb.
    pub fn color(&self) -> bool {
        let color = match &self.command {
            Some(Command::Run(run)) => run.color,
            Some(Command::Describe(describe)) => describe.color,
            Some(Command::Doctor(_)) | None => self.run.color,
        };
        match color.color {
            When::Always => true,
            When::Never => false,
            When::Auto => AutoStream::choice(&std::io::stderr()) != ColorChoice::Never,
        }
    }
}

fn device(text: &str) -> Result<Device, String> {
    let wanted = || "wanted `auto`, `cpu`, `cuda` or `cuda:N`, N being a number of the driver's".to_string();
    match (text, text.strip_prefix("cuda:")) {
        ("auto", _) => Ok(Device::Auto),
        ("cpu", _) => Ok(Device::Cpu),
        ("cuda", _) => Ok(Device::Cuda(0)),
        (_, Some(index)) => index.parse().map(Device::Cuda).map_err(|_| wanted()),
        _ => Err(wanted()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".to_string()),
        Ok(count) if count > 4096 => Err("at most 4096".to_string()),
        Ok(count) => Ok(count),
        Err(_) => Err("not a number of threads".to_string()),
    }
}
