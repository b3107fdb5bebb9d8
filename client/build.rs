//! With the feature `cli`, makes the sample collection part of the command line, so that one binary can show it anywhere.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CLI").is_none() {
        return Ok(());
    }
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let folder = manifest.join("../router/data/sample/documents").canonicalize()?;
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|ending| ending == "md"));
    // By id, not by name: `a.md` comes after `a-b.md`, but `a` before `a-b`.
    files.sort_by(|a, b| a.file_stem().cmp(&b.file_stem()));
    let mut code = "/// The sample's documents: id and Markdown text, in the order of the ids.\n".to_owned();
    code.push_str("pub(crate) const DOCUMENTS: &[(&str, &str)] = &[\n");
    for file in &files {
        let id = file.file_stem().and_then(|stem| stem.to_str()).ok_or("a document's name is not UTF-8")?;
        writeln!(code, "    ({id:?}, include_str!({:?})),", file.display().to_string())?;
    }
    code.push_str("];\n");
    std::fs::write(Path::new(&std::env::var("OUT_DIR")?).join("sample.rs"), code)?;
    Ok(())
}
