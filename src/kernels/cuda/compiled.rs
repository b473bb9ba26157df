//! The kernels as they were compiled: one image per GPU generation, made by `build/build.py`.

use std::io::Read;

use flate2::read::ZlibDecoder;

use crate::kernels::{Error, Result};

/// Compute capability and the zlib-packed machine code for it. Code for 8.0 runs on 8.7 too, that for 9.0a on 9.0 alone.
const MACHINE_CODE: [((i32, i32), &[u8]); 5] = [
    ((7, 5), include_bytes!("compiled/sm_75.z")),
    ((8, 0), include_bytes!("compiled/sm_80.z")),
    ((8, 6), include_bytes!("compiled/sm_86.z")),
    ((8, 9), include_bytes!("compiled/sm_89.z")),
    ((9, 0), include_bytes!("compiled/sm_90a.z")),
];

/// PTX, which the driver of a newer chip translates at the first start.
const PTX: &[u8] = include_bytes!("compiled/compute_90.z");

/// What a chip of `capability` can run, unpacked; PTX with the zero byte at its end.
pub(super) fn image(capability: (i32, i32)) -> Result<Vec<u8>> {
    let same_generation =
        MACHINE_CODE.iter().rev().find(|(made_for, _)| made_for.0 == capability.0 && made_for.1 <= capability.1);
    let packed = match same_generation {
        Some((_, packed)) => packed,
        None if capability > (9, 0) => PTX,
        None => return Err(Error::OldDevice { major: capability.0, minor: capability.1 }),
    };
    let mut image = Vec::new();
    match ZlibDecoder::new(packed).read_to_end(&mut image) {
        Ok(_) => Ok(image),
        Err(_) => unreachable!("the images in the program are whole: a test unpacks them"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::*;

    const MANIFEST: &str = include_str!("compiled/manifest.txt");

    #[test]
    fn every_image_unpacks() {
        for capability in [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0)] {
            assert_eq!(image(capability).unwrap()[..4], *b"\x7fELF");
        }
        for capability in [(10, 0), (12, 0)] {
            let ptx = image(capability).unwrap();
            assert_eq!(ptx.last(), Some(&0));
            assert!(String::from_utf8_lossy(&ptx).contains(".target sm_90\n"));
        }
        assert!(matches!(image((7, 0)), Err(Error::OldDevice { major: 7, minor: 0 })));
    }

    #[test]
    fn no_source_has_changed_since_the_kernels_were_compiled() {
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
        if !kernels.is_dir() {
            println!("not run: the sources are not here");
            return;
        }
        let mut sources = Vec::new();
        for folder in std::fs::read_dir(&kernels).unwrap().map(|entry| entry.unwrap().path()).filter(|p| p.is_dir()) {
            for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if file.extension().is_some_and(|ending| ending == "cu" || ending == "cuh") {
                    sources.push(file);
                }
            }
        }
        sources.sort();
        let mut now = String::new();
        for path in sources {
            let digest = Sha256::digest(std::fs::read(&path).unwrap());
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let name = path.strip_prefix(&kernels).unwrap().to_string_lossy().replace('\\', "/");
            now += &format!("{digest}  {name}\n");
        }
        assert_eq!(now, MANIFEST, "run src/kernels/cuda/build/build.py and commit what it writes");
    }
}
