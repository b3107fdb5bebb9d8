//! The mistakes of `planted/` can be planted in the sources as they are, and nowhere else are they to be found.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::path::Path;

use nearring_sim::planted::{self, SWITCH, Tree};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn every_patch_fits_and_is_behind_its_own_switch() {
    let mistakes = planted::load(&repository().join("sim-tests/planted")).unwrap();
    let mut tree = Tree::new(repository());
    let failed: Vec<String> = mistakes.iter().filter_map(|mistake| tree.apply(mistake).err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let open: Vec<&str> = mistakes.iter().filter(|m| m.name != SWITCH && !m.is_guarded()).map(|m| &*m.name).collect();
    assert!(open.is_empty(), "these would always be on: {open:?}");
    let caught = mistakes.iter().filter(|mistake| mistake.name != SWITCH && mistake.open.is_none()).count();
    assert!(caught >= 30, "{caught} mistakes are said to be caught within the seeds that they name");
}

#[test]
fn sources_know_nothing_of_planted_mistakes() {
    for product in ["proto", "node", "router", "client"] {
        let mut open = vec![repository().join(product).join("src")];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    assert!(!text.contains("planted("), "{} asks for a planted mistake", path.display());
                }
            }
        }
    }
}
