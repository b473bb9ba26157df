//! The safetensors container: 8 bytes of header length, a JSON header, tensor bytes.
//!
//! Read here rather than by the crate of the same name, so that a cut file and a name that appears twice are told
//! apart and named. As strict as that crate: the tensors cover the data from its first byte to its last, once.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// A header is no larger than this.
const LARGEST_HEADER: u64 = 100 << 20;

/// Why bytes are not a safetensors file; the caller adds the file's name.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("it has {0} bytes, fewer than its 8-byte header length")]
    Short(usize),
    #[error("its header should take {header} bytes, the file has {len}")]
    Header { header: u64, len: usize },
    #[error("its header is not valid: {0}")]
    Json(serde_json::Error),
    #[error("its header gives `{name}` the dtype {dtype}, shape {shape:?} and {bytes} bytes, which do not agree")]
    Size { name: String, dtype: String, shape: Vec<usize>, bytes: u64 },
    #[error("`{name}` ends at byte {end} of {len}")]
    Outside { name: String, end: u64, len: usize },
    #[error("`{name}` begins at byte {start}, where byte {wanted} would leave no hole and no overlap")]
    NotNext { name: String, start: usize, wanted: usize },
    #[error("its tensors end at byte {end} of {len}")]
    Uncovered { end: usize, len: usize },
}

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// The element type of a tensor; only some can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    U8,
    Other(String),
}

impl Dtype {
    fn parse(name: &str) -> Self {
        match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "U8" => Self::U8,
            other => Self::Other(other.into()),
        }
    }

    /// Bytes of an element, where that is known.
    fn bytes(&self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::U8 => Some(1),
            Self::Other(_) => None,
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::U8 => "U8",
            Self::Other(name) => name,
        }
    }
}

/// The tensors of a safetensors file by name.
pub fn read(bytes: &[u8]) -> Result<HashMap<String, Entry>, Problem> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or(Problem::Short(bytes.len()))?;
    let header = u64::from_le_bytes(*length);
    let outside = Problem::Header { header, len: bytes.len() };
    if header > LARGEST_HEADER {
        return Err(outside);
    }
    let Some((json, data)) = usize::try_from(header).ok().and_then(|len| rest.split_at_checked(len)) else {
        return Err(outside);
    };
    let base = bytes.len() - data.len();
    let Header(rows) = serde_json::from_slice(json).map_err(Problem::Json)?;
    let mut entries = HashMap::with_capacity(rows.len());
    for (name, row) in rows {
        let [start, end] = row.data_offsets;
        if end > data.len() as u64 {
            return Err(Problem::Outside { name, end: end.saturating_add(base as u64), len: bytes.len() });
        }
        let dtype = Dtype::parse(&row.dtype);
        let elements = row.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let wanted = dtype.bytes().map(|width| elements.and_then(|elements| elements.checked_mul(width)));
        let agrees = match wanted {
            Some(wanted) => start <= end && wanted.is_some_and(|wanted| wanted as u64 == end - start),
            None => start <= end,
        };
        if !agrees {
            let bytes = end.saturating_sub(start);
            return Err(Problem::Size { name, dtype: row.dtype, shape: row.shape, bytes });
        }
        // Both are at most data.len(), checked above.
        let range = base + start as usize..base + end as usize;
        entries.insert(name, Entry { dtype, shape: row.shape, range });
    }
    check_cover(&entries, base..bytes.len())?;
    Ok(entries)
}

/// Fails unless the tensors lie one after another in `data`: a few bytes named many times would be copied as often.
fn check_cover(entries: &HashMap<String, Entry>, data: Range<usize>) -> Result<(), Problem> {
    let mut places: Vec<(usize, usize, &str)> =
        entries.iter().map(|(name, Entry { range, .. })| (range.start, range.end, name.as_str())).collect();
    places.sort_unstable();
    let mut wanted = data.start;
    for (start, end, name) in places {
        if start != wanted {
            return Err(Problem::NotNext { name: name.into(), start, wanted });
        }
        wanted = end;
    }
    if wanted == data.end { Ok(()) } else { Err(Problem::Uncovered { end: wanted, len: data.end }) }
}

#[derive(Deserialize)]
struct Row {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The header's rows; a name that appears twice is an error (a JSON map would keep the last in silence).
struct Header(Vec<(String, Row)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rows;
        impl<'de> Visitor<'de> for Rows {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensor names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut rows = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        continue;
                    }
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format_args!("the tensor `{name}` appears twice")));
                    }
                    rows.push((name, map.next_value()?));
                }
                Ok(Header(rows))
            }
        }
        deserializer.deserialize_map(Rows)
    }
}
