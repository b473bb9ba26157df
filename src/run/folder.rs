//! One folder per run, never shared by two.

use std::path::{Path, PathBuf};

use super::{Result, disk};

/// A folder that this run made and that nobody else writes.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes `out/NAME-YYYYMMDD-HHMMSS` (with `-2`, `-3` … when that second is taken) and points `out/latest` at it.
    pub fn create(out: &Path, name: &str) -> Result<Self> {
        let stamp = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
        Self::create_stamped(out, name, &stamp)
    }

    pub(super) fn create_stamped(out: &Path, name: &str, stamp: &str) -> Result<Self> {
        disk::make_folders(out)?;
        disk::clean(out);
        let mut folder = format!("{name}-{stamp}");
        let mut count = 1_u32;
        while !disk::make_new_folder(&out.join(&folder))? {
            count += 1;
            folder = format!("{name}-{stamp}-{count}");
        }
        disk::point(&out.join("latest"), Path::new(&folder));
        Ok(Self { path: out.join(folder) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `bytes` to the file `name` of the folder, making the folders on the way.
    pub fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            disk::make_folders(parent)?;
        }
        disk::write(&path, bytes)
    }

    pub(super) fn lines(&self, name: &str) -> Result<(PathBuf, disk::Lines)> {
        let path = self.path.join(name);
        disk::open_lines(&path).map(|file| (path, file))
    }
}
