//! The container: magic, version, keys and values, tensor table. Every count and offset is checked against the bytes
//! that are there before anything is allocated or sliced.

use std::collections::HashMap;
use std::ops::Range;

/// Why bytes are not a GGUF file that can be read; the caller adds the file's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Problem {
    #[error("it does not begin with `GGUF`")]
    Magic,
    #[error("its version is {0}; read are 2 and 3, little-endian")]
    Version(u32),
    #[error("it ends inside {0}")]
    Ends(&'static str),
    #[error("it announces {count} {what}, more than its bytes could hold")]
    Count { what: &'static str, count: u64 },
    #[error("{0} is not UTF-8")]
    Utf8(&'static str),
    #[error("key `{key}` has the unknown type {kind}")]
    Type { key: String, kind: u32 },
    #[error("key `{key}` nests lists deeper than 4")]
    Nested { key: String },
    #[error("{what} `{name}` appears twice")]
    Twice { what: &'static str, name: String },
    #[error("`general.alignment` is not a power of two of at least 8")]
    Alignment,
    #[error("tensor `{0}` has a shape that is empty or too large")]
    Shape(String),
    #[error("tensor `{name}` lies at bytes {start} to {end} of {len}")]
    Outside { name: String, start: u64, end: u64, len: usize },
    #[error("`{first}` and `{second}` share bytes; each tensor has its own")]
    Overlap { first: String, second: String },
    #[error("`{first}` and `{second}` name one tensor")]
    Same { first: String, second: String },
}

type Result<T> = std::result::Result<T, Problem>;

/// The value of a metadata key. Whole numbers of every width are one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
    /// A list of another kind; only its length is kept.
    Other(u64),
}

/// One row of the tensor table.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Outermost first: rows, then columns (the file has them the other way round).
    pub shape: Vec<usize>,
    /// GGML's number of the storage type.
    pub kind: u32,
    /// First byte in the file.
    pub start: usize,
}

/// What a GGUF file says about itself; tensor bytes stay in the file.
#[derive(Clone, Debug, Default)]
pub struct Header {
    pub values: HashMap<String, Value>,
    pub tensors: HashMap<String, Tensor>,
}

/// A storage type: its name, elements per block and bytes per block.
pub struct Kind {
    pub name: &'static str,
    pub block: usize,
    pub bytes: usize,
}

/// GGML's storage types by number; those without a size are only ever named in an error.
pub fn kind(number: u32) -> Kind {
    let (name, block, bytes) = match number {
        0 => ("F32", 1, 4),
        1 => ("F16", 1, 2),
        2 => ("Q4_0", 32, 18),
        3 => ("Q4_1", 32, 20),
        6 => ("Q5_0", 32, 22),
        7 => ("Q5_1", 32, 24),
        8 => ("Q8_0", 32, 34),
        9 => ("Q8_1", 32, 36),
        10 => ("Q2_K", 256, 84),
        11 => ("Q3_K", 256, 110),
        12 => ("Q4_K", 256, 144),
        13 => ("Q5_K", 256, 176),
        14 => ("Q6_K", 256, 210),
        15 => ("Q8_K", 256, 292),
        16 => ("IQ2_XXS", 0, 0),
        17 => ("IQ2_XS", 0, 0),
        18 => ("IQ3_XXS", 0, 0),
        19 => ("IQ1_S", 0, 0),
        20 => ("IQ4_NL", 0, 0),
        21 => ("IQ3_S", 0, 0),
        22 => ("IQ2_S", 0, 0),
        23 => ("IQ4_XS", 0, 0),
        24 => ("I8", 1, 1),
        25 => ("I16", 1, 2),
        26 => ("I32", 1, 4),
        27 => ("I64", 1, 8),
        28 => ("F64", 1, 8),
        29 => ("IQ1_M", 0, 0),
        30 => ("BF16", 1, 2),
        34 => ("TQ1_0", 0, 0),
        35 => ("TQ2_0", 0, 0),
        39 => ("MXFP4", 32, 17),
        _ => ("an unknown type", 0, 0),
    };
    Kind { name, block, bytes }
}

impl Tensor {
    /// The tensor's bytes in the file, or nothing for a type whose size is not known or a shape its blocks do not fit.
    pub fn range(&self) -> Option<Range<usize>> {
        let Kind { block, bytes, .. } = kind(self.kind);
        let columns = *self.shape.last()?;
        if block == 0 || !columns.is_multiple_of(block) {
            return None;
        }
        let elements = self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
        let end = self.start.checked_add((elements / block).checked_mul(bytes)?)?;
        Some(self.start..end)
    }
}

impl Header {
    /// Reads everything before the tensor bytes.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor { rest: bytes };
        if cursor.take(4, "the magic") != Ok(b"GGUF") {
            return Err(Problem::Magic);
        }
        let version = cursor.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(Problem::Version(version));
        }
        // A tensor takes at least 8 + 4 + 8 + 4 + 8 bytes of the table, a key 8 + 4 + 1.
        let tensors = cursor.count("tensors", 32)?;
        let keys = cursor.count("keys", 13)?;
        let mut header = Self::default();
        for _ in 0..keys {
            let key = cursor.text("a key")?;
            let kind = cursor.u32("a key")?;
            let value = cursor.value(&key, kind, 0)?;
            if header.values.insert(key.clone(), value).is_some() {
                return Err(Problem::Twice { what: "key", name: key });
            }
        }
        let alignment = match header.values.get("general.alignment") {
            None => 32,
            Some(Value::Int(value)) => usize::try_from(*value)
                .ok()
                .filter(|value| value.is_power_of_two() && *value >= 8 && *value <= 1 << 20)
                .ok_or(Problem::Alignment)?,
            Some(_) => return Err(Problem::Alignment),
        };
        let mut table = Vec::new();
        for _ in 0..tensors {
            table.push(cursor.tensor()?);
        }
        let data = (bytes.len() - cursor.rest.len()).next_multiple_of(alignment);
        for (name, mut shape, kind, offset) in table {
            let outside = |end: u64| Problem::Outside { name: name.clone(), start: offset, end, len: bytes.len() };
            let start = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(data));
            let start = start.filter(|&start| start <= bytes.len()).ok_or_else(|| outside(u64::MAX))?;
            shape.reverse();
            let tensor = Tensor { shape, kind, start };
            if let Some(range) = tensor.range()
                && range.end > bytes.len()
            {
                return Err(Problem::Outside { name, start: start as u64, end: range.end as u64, len: bytes.len() });
            }
            if header.tensors.insert(name.clone(), tensor).is_some() {
                return Err(Problem::Twice { what: "tensor", name });
            }
        }
        header.check_overlaps()?;
        Ok(header)
    }

    /// A few bytes named by many tensors would be copied as often. Holes are fine: tensors are aligned.
    fn check_overlaps(&self) -> Result<()> {
        let place = |(name, tensor): (&'_ String, &Tensor)| tensor.range().map(|r| (r.start, r.end, name.clone()));
        let mut places: Vec<(usize, usize, String)> = self.tensors.iter().filter_map(place).collect();
        places.sort_unstable();
        match places.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            None => Ok(()),
            Some(pair) => Err(Problem::Overlap { first: pair[0].2.clone(), second: pair[1].2.clone() }),
        }
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Problem::Ends(what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Problem::Ends(what))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things of at least `least` bytes each: no more than the rest of the file could hold.
    fn count(&mut self, what: &'static str, least: usize) -> Result<usize> {
        let count = self.u64(what)?;
        match usize::try_from(count) {
            Ok(fits) if fits <= self.rest.len() / least => Ok(fits),
            _ => Err(Problem::Count { what, count }),
        }
    }

    fn text(&mut self, what: &'static str) -> Result<String> {
        let len = self.u64(what)?;
        let len = usize::try_from(len).map_err(|_| Problem::Ends(what))?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map(str::to_string).map_err(|_| Problem::Utf8(what))
    }

    fn tensor(&mut self) -> Result<(String, Vec<usize>, u32, u64)> {
        const WHAT: &str = "the tensor table";
        let name = self.text(WHAT)?;
        let dimensions = self.u32(WHAT)?;
        if !(1..=4).contains(&dimensions) {
            return Err(Problem::Shape(name));
        }
        let mut shape = Vec::new();
        let mut elements = 1usize;
        for _ in 0..dimensions {
            let size = usize::try_from(self.u64(WHAT)?).ok().filter(|&size| size > 0);
            let product = size.and_then(|size| Some((size, elements.checked_mul(size)?)));
            let Some((size, product)) = product else { return Err(Problem::Shape(name)) };
            elements = product;
            shape.push(size);
        }
        Ok((name, shape, self.u32(WHAT)?, self.u64(WHAT)?))
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Value> {
        const WHAT: &str = "a value";
        Ok(match kind {
            0 => Value::Int(u8::from_le_bytes(self.array(WHAT)?).into()),
            1 => Value::Int(i8::from_le_bytes(self.array(WHAT)?).into()),
            2 => Value::Int(u16::from_le_bytes(self.array(WHAT)?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array(WHAT)?).into()),
            4 => Value::Int(u32::from_le_bytes(self.array(WHAT)?).into()),
            5 => Value::Int(i32::from_le_bytes(self.array(WHAT)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(WHAT)?).into()),
            7 => Value::Bool(self.array::<1>(WHAT)? != [0]),
            8 => Value::Text(self.text(WHAT)?),
            9 => self.list(key, depth)?,
            10 => Value::Int(u64::from_le_bytes(self.array(WHAT)?).into()),
            11 => Value::Int(i64::from_le_bytes(self.array(WHAT)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array(WHAT)?)),
            _ => return Err(Problem::Type { key: key.into(), kind }),
        })
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value> {
        const WHAT: &str = "a list";
        let kind = self.u32(WHAT)?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => return Err(Problem::Type { key: key.into(), kind }),
        };
        let count = self.count("values of a list", width)?;
        match kind {
            8 => (0..count).map(|_| self.text("a text of a list")).collect::<Result<_>>().map(Value::Texts),
            9 if depth >= 3 => Err(Problem::Nested { key: key.into() }),
            9 => {
                for _ in 0..count {
                    self.list(key, depth + 1)?;
                }
                Ok(Value::Other(count as u64))
            }
            6 => {
                let (values, _) = self.take(count * width, WHAT)?.as_chunks::<4>();
                Ok(Value::Floats(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()))
            }
            12 => {
                let (values, _) = self.take(count * width, WHAT)?.as_chunks::<8>();
                Ok(Value::Floats(values.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect()))
            }
            4 => {
                let (values, _) = self.take(count * width, WHAT)?.as_chunks::<4>();
                Ok(Value::Ints(values.iter().map(|&bytes| u32::from_le_bytes(bytes).into()).collect()))
            }
            5 => {
                let (values, _) = self.take(count * width, WHAT)?.as_chunks::<4>();
                Ok(Value::Ints(values.iter().map(|&bytes| i32::from_le_bytes(bytes).into()).collect()))
            }
            _ => {
                self.take(count * width, WHAT)?;
                Ok(Value::Other(count as u64))
            }
        }
    }
}
