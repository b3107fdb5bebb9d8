//! Names the code that a campaign ran: a digest of what the simulated binary is made of, tests and documents left out.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let mut files = BTreeSet::from([PathBuf::from("Cargo.lock")]);
    for part in ["proto/proto", "proto/src", "node/src", "router/src", "router/assets", "client/src", "sim-tests/src"] {
        println!("cargo::rerun-if-changed=../{part}");
        collect(&root, Path::new(part), &mut files)?;
    }
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let bytes = fs::read(root.join(&file))?;
        for part in [file.to_string_lossy().as_bytes(), &bytes] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    println!("cargo::rustc-env=NEARRING_SIM_CODE={}", &hasher.finalize().to_hex()[..16]);
    Ok(())
}

fn collect(root: &Path, dir: &Path, files: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(root.join(dir)) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        let name = entry.file_name().to_string_lossy().into_owned();
        let tests = ["tests", "tests.rs", "testing.rs", "fault.rs", "bin"].contains(&name.as_str());
        if entry.file_type()?.is_dir() && !tests {
            collect(root, &path, files)?;
        } else if !tests {
            files.insert(path);
        }
    }
    Ok(())
}
