//! Where the hub and its cache are, who asks, and whether to ask at all: Hugging Face's own variables.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::io;

/// The hub where none is named.
pub const ENDPOINT: &str = "https://huggingface.co";
/// A token is no longer than this.
const LARGEST_TOKEN: u64 = 4096;

/// A secret that no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// What goes into the request's header, and nowhere else.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The hub as this process sees it.
#[derive(Clone, Debug)]
pub struct Places {
    /// The cache that Hugging Face's tools share: `HF_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`,
    /// `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or what the file of `HF_TOKEN_PATH` or `HF_HOME/token` holds.
    pub token: Option<Token>,
    /// Where the token was found.
    pub token_from: Option<String>,
    /// The variable that forbids the network, where one does: `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`.
    pub offline: Option<&'static str>,
}

impl Places {
    /// What the process's environment says.
    pub fn from_environment() -> Self {
        Self::new(|name| std::env::var_os(name).map(PathBuf::from))
    }

    /// What an environment says that `variable` reads.
    pub fn new(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.as_os_str().is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().trim().to_owned());
        let home = home(&set);
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let is_on = |name: &&'static str| {
            text(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let (token, token_from) = token(&set, &home).unzip();
        Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            token_from,
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(is_on),
        }
    }

    /// The page of a repository, for a person.
    pub fn page(&self, id: &str) -> String {
        format!("{}/{id}", self.endpoint)
    }
}

/// `HF_HOME`, or the folder `huggingface` of the user's cache.
fn home(set: &impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME").or_else(|| set("USERPROFILE"))?.join(".cache")));
    set("HF_HOME").unwrap_or_else(|| cache().unwrap_or_default().join("huggingface"))
}

/// The token and where it was found.
fn token(set: &impl Fn(&str) -> Option<PathBuf>, home: &Path) -> Option<(Token, String)> {
    let clean = |text: &str| {
        let text = text.trim();
        // A header holds one line of visible letters; anything else is no token.
        let is_token = !text.is_empty() && text.chars().all(|letter| letter.is_ascii_graphic());
        is_token.then(|| Token(text.to_owned()))
    };
    if set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(token) = set(name).and_then(|value| clean(&value.to_string_lossy())) {
            return Some((token, name.to_owned()));
        }
    }
    let file = set("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
    let token = clean(&io::read_text(&file, LARGEST_TOKEN).ok()?)?;
    Some((token, file.display().to_string()))
}
