//! What the engine holds on the device: activations, full-precision values, bytes, row numbers, texts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::device::{Arg, Buffer, Device, Pointer};
use super::dtype::Dtype;
use crate::kernels::matrix::{Matrix, Texts};
use crate::kernels::{Error, Result, same};

/// The shape of a buffer without values: what the operations' checks read and what they size.
pub(super) type Shape = Matrix<()>;

/// Rows that a cache's room is counted in: 256 of Mistral-7B's take 33 MB over all layers.
const RESERVED_ROWS: usize = 256;

/// A row-major matrix in the compute dtype; the buffer holds at least `rows * cols` values.
#[derive(Debug)]
pub struct Act {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) dtype: Dtype,
    pub(super) buffer: Buffer,
}

impl Act {
    pub(super) fn new(dtype: Dtype) -> Self {
        Self { rows: 0, cols: 0, dtype, buffer: Buffer::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    pub(super) fn bytes(&self) -> usize {
        self.len() * self.dtype.bytes()
    }

    pub(crate) fn pointer(&self) -> Pointer {
        self.buffer.pointer()
    }

    /// The address of a column of the first row.
    pub(crate) fn column(&self, column: usize) -> Pointer {
        self.pointer().plus(column * self.dtype.bytes())
    }

    pub(crate) fn arg(&self) -> Arg {
        self.pointer().into()
    }

    /// Zeros, in the shape it has.
    pub(crate) fn clear(&mut self, device: &Device) -> Result<()> {
        let bytes = self.bytes();
        device.zero("zero_act", &mut self.buffer, bytes)
    }

    pub(super) fn shape(&self) -> Shape {
        Matrix { rows: self.rows, cols: self.cols, values: vec![(); self.len()] }
    }

    /// Takes a shape; the values are whatever they were. A buffer that is too small is given back before the new one is
    /// asked for.
    pub(super) fn fit(&mut self, device: &Device, rows: usize, cols: usize) -> Result<()> {
        let bytes = rows.saturating_mul(cols).saturating_mul(self.dtype.bytes());
        if bytes > self.buffer.len() {
            (self.rows, self.cols) = (0, 0);
            self.buffer = Buffer::default();
            self.buffer = device.alloc("resize", bytes)?;
        }
        (self.rows, self.cols) = (rows, cols);
        Ok(())
    }

    /// As `grow`, with room for whole hundreds of rows; returns the rows there is room for.
    pub(super) fn reserve(&mut self, device: &Device, rows: usize, cols: usize) -> Result<usize> {
        let row = cols.saturating_mul(self.dtype.bytes()).max(1);
        if rows.saturating_mul(row) > self.buffer.len() {
            self.grow(device, rows.next_multiple_of(RESERVED_ROWS), cols)?;
        }
        (self.rows, self.cols) = (rows, cols);
        Ok(self.capacity())
    }

    /// Rows of its width that the buffer has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.len() / self.cols.saturating_mul(self.dtype.bytes()).max(1)
    }

    /// Takes `rows` and keeps the values of the rows there are; grows by doubling.
    pub(super) fn grow(&mut self, device: &Device, rows: usize, cols: usize) -> Result<()> {
        let bytes = rows.saturating_mul(cols).saturating_mul(self.dtype.bytes());
        if bytes > self.buffer.len() {
            let mut larger = device.alloc("resize", bytes.max(2 * self.buffer.len()))?;
            device.copy("resize", &self.buffer, &mut larger, self.buffer.len())?;
            self.buffer = larger;
        }
        (self.rows, self.cols) = (rows, cols);
        Ok(())
    }
}

/// f32 values, and a copy of them in the compute dtype for the products that need one.
#[derive(Debug)]
pub struct Full {
    pub(super) len: usize,
    pub(super) buffer: Buffer,
    /// Tells this buffer's contents from all others there were.
    version: u64,
    narrow: Mutex<Option<(u64, Buffer)>>,
}

static VERSIONS: AtomicU64 = AtomicU64::new(1);

impl Full {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self> {
        let mut full = Self { len: 0, buffer: Buffer::default(), version: 0, narrow: Mutex::default() };
        full.fit(device, len)?;
        let bytes = 4 * len;
        device.zero("full", &mut full.buffer, bytes)?;
        Ok(full)
    }

    pub(super) fn fit(&mut self, device: &Device, len: usize) -> Result<()> {
        if len.saturating_mul(4) > self.buffer.len() {
            self.len = 0;
            self.buffer = Buffer::default();
            self.buffer = device.alloc("full", len.saturating_mul(4))?;
        }
        self.len = len;
        self.changed();
        Ok(())
    }

    /// To be called by whatever writes the values.
    pub(super) fn changed(&mut self) {
        self.version = VERSIONS.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn pointer(&self) -> Pointer {
        self.buffer.pointer()
    }

    pub(crate) fn arg(&self) -> Arg {
        self.pointer().into()
    }

    pub(super) fn shape(&self) -> Vec<()> {
        vec![(); self.len]
    }

    /// The values in `dtype`: these themselves, or a copy that is made anew when they have changed.
    pub(crate) fn narrow(&self, device: &Device, dtype: Dtype) -> Result<Pointer> {
        if dtype == Dtype::F32 {
            return Ok(self.pointer());
        }
        let mut narrow = self.narrow.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.len * dtype.bytes();
        if let Some((version, copy)) = narrow.as_ref()
            && *version == self.version
        {
            return Ok(copy.pointer());
        }
        let copy = match narrow.take() {
            Some((_, copy)) if copy.len() >= bytes => copy,
            _ => device.alloc("full", bytes)?,
        };
        crate::kernels::linear::cuda::cast(device, (self.pointer(), Dtype::F32), self.len, (copy.pointer(), dtype))?;
        let pointer = copy.pointer();
        *narrow = Some((self.version, copy));
        Ok(pointer)
    }
}

/// Bytes, for the optimizer's 8-bit states.
#[derive(Debug)]
pub struct Bytes {
    pub(super) len: usize,
    pub(super) buffer: Buffer,
}

impl Bytes {
    pub(crate) fn arg(&self) -> Arg {
        self.buffer.pointer().into()
    }
}

/// Row numbers or tokens, on both sides: the host checks them.
#[derive(Debug)]
pub struct Index {
    pub(super) host: Vec<u32>,
    pub(super) buffer: Buffer,
}

impl Index {
    /// Other values in the same memory.
    pub(super) fn rewrite(&mut self, device: &Device, values: &[u32]) -> Result<()> {
        same("index", "the number of values", values.len(), self.host.len())?;
        self.host.copy_from_slice(values);
        device.write("index", &mut self.buffer, 0, values)
    }

    pub(crate) fn len(&self) -> usize {
        self.host.len()
    }

    pub(crate) fn arg(&self) -> Arg {
        self.buffer.pointer().into()
    }
}

/// The texts of a batch; for each row its text's first row, the end of its text and its position; and the texts cut into
/// the tiles the attention kernels work on.
#[derive(Debug)]
pub struct Segments {
    pub(super) texts: Texts,
    /// All lists one after the other.
    numbers: Buffer,
    /// Where each list starts, and after the last where it ends.
    starts: [usize; LISTS + 1],
    /// What an operation has derived from the texts, and the key it did so under.
    derived: Mutex<Option<([usize; 4], Buffer)>>,
}

/// Row starts, row ends, positions, and the three lists of tiles.
const LISTS: usize = 6;
const POSITIONS: usize = 2;

/// Tiles of an attention kernel: their list on the device and their number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    pub list: Arg,
    pub count: usize,
}

/// Numbers a tile takes in a list: the text's first row, its length, the tile's first row in it.
const TILE_NUMBERS: usize = 3;

impl Segments {
    pub(super) fn new(device: &Device, texts: Texts) -> Result<Self> {
        let op = "segments";
        let number =
            |row: usize| i32::try_from(row).map_err(|_| Error::Index { op, index: row, len: i32::MAX as usize });
        number(texts.position_end())?;
        number(texts.tokens())?;
        let (mut firsts, mut ends) = (Vec::new(), Vec::new());
        for rows in texts.rows() {
            firsts.resize(rows.end, number(rows.start)?);
            ends.resize(rows.end, number(rows.end)?);
        }
        let positions = texts.positions().map(number).collect::<Result<Vec<_>>>()?;
        let cut = |tile: usize| {
            let tiles = texts.rows().flat_map(move |rows| {
                let (start, len) = (rows.start as i32, rows.len() as i32);
                (0..rows.len()).step_by(tile).map(move |first| [start, len, first as i32])
            });
            tiles.collect::<Vec<_>>()
        };
        let (mut wide, mut queries) = (cut(super::QUERIES_FORWARD), cut(super::ROWS_BACKWARD));
        let mut keys = queries.clone();
        // a query sees the keys before it, a key the queries after it: the longest work first
        wide.sort_by_key(|tile| std::cmp::Reverse(tile[2]));
        queries.sort_by_key(|tile| std::cmp::Reverse(tile[2]));
        keys.sort_by_key(|tile| std::cmp::Reverse(tile[1] - tile[2]));
        let lists = [firsts, ends, positions, wide.concat(), queries.concat(), keys.concat()];
        let mut starts = [0; LISTS + 1];
        for (index, list) in lists.iter().enumerate() {
            starts[index + 1] = starts[index] + list.len();
        }
        Ok(Self { numbers: device.upload(op, &lists.concat())?, starts, derived: Mutex::default(), texts })
    }

    /// Numbers that depend on the texts and `key` alone, on the device: made for the first layer that asks, kept for the
    /// others.
    pub(crate) fn derived(
        &self,
        device: &Device,
        key: [usize; 4],
        make: impl FnOnce() -> Result<Vec<i32>>,
    ) -> Result<Pointer> {
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, buffer)) = derived.as_ref()
            && *of == key
        {
            return Ok(buffer.pointer());
        }
        let buffer = device.upload("segments", &make()?)?;
        let pointer = buffer.pointer();
        *derived = Some((key, buffer));
        Ok(pointer)
    }

    /// The same rows at other positions of their texts, in the same memory.
    pub(super) fn shift(&mut self, device: &Device, first_position: usize) -> Result<()> {
        self.texts.shift(first_position);
        let op = "segments";
        let (end, len) = (self.texts.position_end(), i32::MAX as usize);
        let number = |row: usize| i32::try_from(row).map_err(|_| Error::Index { op, index: end, len });
        let positions = self.texts.positions().map(number).collect::<Result<Vec<_>>>()?;
        device.write(op, &mut self.numbers, self.starts[POSITIONS] * size_of::<i32>(), &positions)
    }

    fn list(&self, index: usize) -> Arg {
        self.numbers.pointer().plus(self.starts[index] * size_of::<i32>()).into()
    }

    fn tiles(&self, index: usize) -> Tiles {
        Tiles { list: self.list(index), count: (self.starts[index + 1] - self.starts[index]) / TILE_NUMBERS }
    }

    pub(crate) fn texts(&self) -> &Texts {
        &self.texts
    }

    pub(crate) fn starts(&self) -> Arg {
        self.list(0)
    }

    pub(crate) fn ends(&self) -> Arg {
        self.list(1)
    }

    pub(crate) fn positions(&self) -> Arg {
        self.list(POSITIONS)
    }

    /// `QUERIES_FORWARD` queries each.
    pub(crate) fn forward_tiles(&self) -> Tiles {
        self.tiles(3)
    }

    /// `ROWS_BACKWARD` queries each.
    pub(crate) fn query_tiles(&self) -> Tiles {
        self.tiles(4)
    }

    /// `ROWS_BACKWARD` keys each.
    pub(crate) fn key_tiles(&self) -> Tiles {
        self.tiles(5)
    }
}
