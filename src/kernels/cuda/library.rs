//! Where NVIDIA's libraries are: in the loader's path, in a CUDA toolkit, or among the packages of a Python.

use std::path::{Path, PathBuf};

use crate::io;

/// A library by its file names and the packages that bring it to a Python.
pub(super) struct Wanted {
    /// Newest first: each works with every driver that can load it.
    names: &'static [&'static str],
    /// Folders under `site-packages/nvidia` that hold a `lib`.
    packages: &'static [&'static str],
}

pub(super) const BLAS: Wanted = Wanted {
    names: if cfg!(windows) {
        &["cublasLt64_13.dll", "cublasLt64_12.dll", "cublasLt64_11.dll"]
    } else {
        &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"]
    },
    packages: &["cublas", "cu13"],
};

pub(super) const CUDNN: Wanted =
    Wanted { names: if cfg!(windows) { &["cudnn64_9.dll"] } else { &["libcudnn.so.9"] }, packages: &["cudnn"] };

/// Folders of a toolkit that may hold it.
const TOOLKIT_FOLDERS: [&str; 4] = ["lib64", "lib", "targets/x86_64-linux/lib", "bin"];

/// What to try, in order: the bare names, which the loader looks for in its own path, then files that exist.
pub(super) fn candidates(wanted: &Wanted) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = wanted.names.iter().map(PathBuf::from).collect();
    let folders = toolkits().into_iter().chain(pythons(wanted.packages));
    for folder in folders {
        found.extend(wanted.names.iter().map(|name| folder.join(name)).filter(|path| io::is_file(path)));
    }
    found
}

fn toolkits() -> Vec<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
    let mut roots: Vec<PathBuf> = named.into_iter().filter_map(std::env::var_os).map(PathBuf::from).collect();
    roots.extend(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    roots.extend(children(Path::new("/usr/local"), "cuda-"));
    roots.iter().flat_map(|root| TOOLKIT_FOLDERS.map(|folder| root.join(folder))).collect()
}

/// `nvidia/PART/lib` of every Python that is active or usual.
fn pythons(parts: &[&str]) -> Vec<PathBuf> {
    let named = ["VIRTUAL_ENV", "CONDA_PREFIX"];
    let mut roots: Vec<PathBuf> = named.into_iter().filter_map(std::env::var_os).map(PathBuf::from).collect();
    roots.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join(".local")));
    roots.extend([".venv", "venv", "/usr/local", "/usr", "/opt/conda", "/opt/venv"].map(PathBuf::from));
    let libraries = roots.iter().flat_map(|root| children(&root.join("lib"), "python3"));
    let packages = libraries.flat_map(|lib| [lib.join("site-packages"), lib.join("dist-packages")]);
    packages.flat_map(|packages| parts.iter().map(move |part| packages.join("nvidia").join(part).join("lib"))).collect()
}

/// Entries of `folder` that start with `start`, last name first; none where the folder cannot be read.
fn children(folder: &Path, start: &str) -> Vec<PathBuf> {
    let mut names = io::list(folder).unwrap_or_default();
    names.retain(|name| name.starts_with(start));
    names.sort_by(|a, b| b.cmp(a));
    names.into_iter().map(|name| folder.join(name)).collect()
}
