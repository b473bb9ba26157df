//! Why a model could not be found or fetched.

use std::path::PathBuf;

use crate::{io, weights};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Weights(#[from] weights::Error),
    #[error("this build has no built-in model; give a folder or a .gguf file")]
    NoBuiltin,
    #[error("there is no built-in model `{id}`; there is `builtin:tiny-mistral`")]
    Builtin { id: String },
    #[error(
        "`{id}` is neither a folder, a .gguf file, a hub id (`org/name`, or `org/name/file.gguf`) nor \
         `builtin:tiny-mistral`"
    )]
    Id { id: String },
    #[error("`{id}` is not a folder on this machine, and this build has no hub support; give the folder that has it")]
    NoHub { id: String },
    #[error(
        "`{id}` is not on this machine{} and {variable} forbids fetching it (looked for the folder `{folder}` and in \
         the Hugging Face cache `{cache}`): unset {variable}, or give a folder that has the model",
        lacks(.missing)
    )]
    Offline { id: String, variable: &'static str, folder: PathBuf, cache: PathBuf, missing: Option<String> },
    #[error(
        "the hub {endpoint} knows no model `{id}`{}: it may be misspelt, or private; a private one wants HF_TOKEN set to \
         a token that may read it{}",
        did_you_mean(.near), with_token(.token_from)
    )]
    NotFound { id: String, endpoint: String, near: Option<String>, token_from: Option<String> },
    #[error("`{id}` has no revision `{revision}`; its page {page} lists what there is")]
    NoRevision { id: String, revision: String, page: String },
    #[error(
        "`{id}` is gated: open {page}, accept its terms, and set HF_TOKEN to a token of that account (from \
         {endpoint}/settings/tokens){}",
        with_token(.token_from)
    )]
    Gated { id: String, page: String, endpoint: String, token_from: Option<String> },
    #[error(
        "the hub refuses `{id}` (status {status}){}: set HF_TOKEN to a valid token that may read it (from \
         {endpoint}/settings/tokens){}",
        quoted(.said), with_token(.token_from)
    )]
    Refused { id: String, status: u16, said: String, endpoint: String, token_from: Option<String> },
    #[error("`{id}` has no file `{name}`; it has: {}", listed(.has))]
    NoFile { id: String, name: String, has: Vec<String> },
    #[error("`{id}` has no safetensors weights{}", one_of(.id, .ggufs))]
    NoWeights { id: String, ggufs: Vec<String> },
    #[error("`{path}` does not list the model's shards: fetch the model again")]
    Index { path: PathBuf },
    #[error(
        "the hub {endpoint} answers with status {status} to the request for `{what}`{}, {tries} times by now: wait a \
         few minutes and run again, which goes on where this stopped{}",
        quoted(.said), if *.status == 429 { "; with HF_TOKEN set the limits are wider" } else { "" }
    )]
    Busy { endpoint: String, what: String, status: u16, said: String, tries: u32 },
    #[error(
        "the hub {endpoint} wants {seconds} seconds of rest before it sends `{what}` (status {status}): run again then, \
         which goes on where this stopped"
    )]
    Later { endpoint: String, what: String, status: u16, seconds: u64 },
    #[error("the hub {endpoint} answers with status {status} to the request for `{what}`{}", quoted(.said))]
    Status { endpoint: String, what: String, status: u16, said: String },
    #[error(
        "`{id}` is not in the Hugging Face cache, and the hub {endpoint} cannot be reached ({reason}): look at the network \
         and at HTTPS_PROXY, set HF_HUB_OFFLINE=1 to use what the cache has, or give a folder that has the model"
    )]
    Network { id: String, endpoint: String, reason: String },
    #[error(
        "`{what}` broke off at {got} of {size} bytes, again and again ({reason}): what is here is kept, run again to go on"
    )]
    Broken { what: String, got: u64, size: u64, reason: String },
    #[error("`{what}` changed on the hub while it was fetched: run again to fetch the new one")]
    Changed { what: String },
    #[error(
        "`{what}` came with a wrong checksum twice (SHA-256 {got}, wanted {wanted}): the network or the disk damages \
         what it carries; nothing of it is kept"
    )]
    Corrupt { what: String, got: String, wanted: String },
    #[error(
        "`{id}` needs {} in `{folder}`, where {} are free: free some, or set HF_HOME to a folder on another disk",
        bytes(*.needed), bytes(*.free)
    )]
    NoSpace { id: String, needed: u64, free: u64, folder: PathBuf },
    #[error("the hub {endpoint} gave an answer about `{what}` that is not understood: {reason}")]
    Answer { endpoint: String, what: String, reason: String },
    #[error("HF_ENDPOINT is `{endpoint}`, which is no address: {reason}")]
    Endpoint { endpoint: String, reason: String },
    #[error("the network cannot be used: {reason}")]
    Client { reason: String },
    #[error("stopped while fetching")]
    Cancelled,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `4.1 GB`, in units of 1000 as the hub's pages have them.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes as f64 {
        count if count >= 999.95e6 => format!("{:.1} GB", count / 1e9),
        count if count >= 999.5e3 => format!("{:.0} MB", count / 1e6),
        count if count >= 1e3 => format!("{:.0} kB", count / 1e3),
        _ => format!("{bytes} bytes"),
    }
}

fn lacks(missing: &Option<String>) -> String {
    missing.as_ref().map_or_else(String::new, |name| format!(" as a whole (`{name}` is missing)"))
}

fn did_you_mean(near: &Option<String>) -> String {
    near.as_ref().map_or_else(String::new, |near| format!(", did you mean `{near}`?"))
}

fn with_token(from: &Option<String>) -> String {
    from.as_ref().map_or_else(String::new, |from| format!("; the token of `{from}` was sent and does not do"))
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" (\"{text}\")") }
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    if text.is_empty() { "nothing".to_owned() } else { text }
}

fn one_of(id: &str, names: &[String]) -> String {
    match names {
        [] => "; this program reads safetensors and GGUF".to_owned(),
        names => {
            let named: Vec<String> = names.iter().map(|name| format!("{id}/{name}")).collect();
            format!("; name one of its GGUF files: {}", listed(&named))
        }
    }
}
