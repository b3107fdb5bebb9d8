//! Mistakes that can be planted: a judge earns trust by catching what was put in on purpose.
//!
//! Each mistake is a patch, `planted/NAME.patch`, against the product's sources. None of them is ever applied to the
//! repository: the program `planted` makes a copy, applies all of them to it as a series in the order of their names, and
//! builds it once. In the copy `00-switch` adds a function that asks the environment which mistake is switched in, and every
//! other patch makes its mistake only where that function says so. So product code has no branch for this, one build serves
//! all mistakes, and with none switched in it must behave as the real one.
//!
//! ```text
//! what: the mistake                          one line each
//! like: where something like it has happened, owner/repository#number; optional
//! judge: the property that it breaks
//! seeds: so many at the most until one shows it
//! open: what the simulator lacks to show it; only while that is so
//!
//! --- a/path                                 a unified diff with little context
//! ```
//!
//! Deliberately not here: patches that create, delete or rename files.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use diffy::{DiffOptions, Patch};

/// The patch that adds the switch; not a mistake.
pub const SWITCH: &str = "00-switch";
/// The environment variable that names the mistake switched in.
pub const VARIABLE: &str = "NEARRING_PLANTED";
/// How the part of a file begins.
const BEGIN: &str = "--- a/";
/// Lines of context in a patch: few, so that changes beside a mistake leave it alone.
const CONTEXT: usize = 2;

/// One patch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mistake {
    /// Its name: the file's, without the ending.
    pub name: String,
    /// What is wrong.
    pub what: String,
    /// Where something like it has happened.
    pub like: Option<String>,
    /// The property that it breaks.
    pub judge: String,
    /// Seeds within which it must be caught.
    pub seeds: u64,
    /// What the simulator lacks to catch it; `None`: it must be caught.
    pub open: Option<String>,
    head: String,
    diff: String,
}

impl Mistake {
    /// Reads a patch.
    ///
    /// # Errors
    /// What is wrong with its head.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let wrong = |reason: String| format!("{name}.patch: {reason}");
        let at = if text.starts_with(BEGIN) { 0 } else { text.find("\n--- a/").map_or(text.len(), |at| at + 1) };
        let (head, diff) = text.split_at(at);
        let mut mistake =
            Self { name: name.to_owned(), head: head.to_owned(), diff: diff.to_owned(), ..Self::default() };
        if name == SWITCH {
            return Ok(mistake);
        }
        for line in head.lines().filter(|line| !line.trim().is_empty()) {
            let (field, value) = line.split_once(": ").ok_or_else(|| wrong(format!("{line:?} is no field")))?;
            let value = value.trim().to_owned();
            match field {
                "what" => mistake.what = value,
                "like" => mistake.like = Some(value),
                "judge" => mistake.judge = value,
                "seeds" => mistake.seeds = value.parse().map_err(|error| wrong(format!("seeds: {error}")))?,
                "open" => mistake.open = Some(value),
                _ => return Err(wrong(format!("an unknown field {field:?}"))),
            }
        }
        if mistake.what.is_empty() || mistake.judge.is_empty() || mistake.seeds == 0 {
            return Err(wrong("its head must say what, judge and seeds".to_owned()));
        }
        Ok(mistake)
    }

    /// Whether the patch asks the switch for its own name.
    pub fn is_guarded(&self) -> bool {
        let added = self.diff.lines().filter(|line| line.starts_with('+'));
        let asked = [format!("planted(\"{}\")", self.name), format!("planted_nth(\"{}\"", self.name)];
        added.into_iter().any(|line| asked.iter().any(|asked| line.contains(asked)))
    }
}

/// All patches of a directory in the order in which they are applied: the switch, then the mistakes by name.
///
/// # Errors
/// Where one cannot be read.
pub fn load(dir: &Path) -> Result<Vec<Mistake>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    let mut mistakes = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let (Some(name), Some("patch")) = (path.file_stem(), path.extension().and_then(|end| end.to_str())) {
            mistakes.push(Mistake::parse(&name.to_string_lossy(), &fs::read_to_string(&path).map_err(failed)?)?);
        }
    }
    mistakes.sort_by(|a, b| a.name.cmp(&b.name));
    match mistakes.first() {
        Some(first) if first.name == SWITCH => Ok(mistakes),
        _ => Err(format!("{}: {SWITCH}.patch must be there and come first", dir.display())),
    }
}

/// The sources with patches applied, in memory.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
    changed: BTreeMap<String, String>,
}

impl Tree {
    /// The sources under `root`, as they are.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), changed: BTreeMap::new() }
    }

    /// Applies a patch whole, or nothing of it.
    ///
    /// # Errors
    /// Where it does not fit: which file and hunk, and how to refresh it.
    pub fn apply(&mut self, mistake: &Mistake) -> Result<(), String> {
        let name = &mistake.name;
        let mut changed = self.changed.clone();
        for (path, text) in mistake.parts() {
            let patch = Patch::from_str(text).map_err(|error| format!("{name}.patch: {error}"))?;
            let before = self.read(&path)?;
            let after = diffy::apply(changed.get(&path).unwrap_or(&before), &patch).map_err(|error| {
                format!(
                    "{name}.patch does not fit {path} any more ({error}); refresh it: \
                     cargo run --release -p nearring-sim --bin planted -- --refresh {name}"
                )
            })?;
            changed.insert(path, after);
        }
        self.changed = changed;
        Ok(())
    }

    /// A file, with what was applied to it.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read(&self, path: &str) -> Result<String, String> {
        match self.changed.get(path) {
            Some(text) => Ok(text.clone()),
            None => fs::read_to_string(self.root.join(path)).map_err(|error| format!("{path}: {error}")),
        }
    }

    /// The files that patches changed, and what they hold now.
    pub fn changed(&self) -> &BTreeMap<String, String> {
        &self.changed
    }
}

impl Mistake {
    /// The files that it changes.
    pub fn files(&self) -> Vec<String> {
        self.parts().into_iter().map(|(path, _)| path).collect()
    }

    /// The part of each file, and its path.
    fn parts(&self) -> Vec<(String, &str)> {
        let begins = |at: &usize| *at == 0 || self.diff[..*at].ends_with('\n');
        let starts: Vec<usize> = self.diff.match_indices(BEGIN).map(|(at, _)| at).filter(begins).collect();
        let ends = starts.iter().skip(1).copied().chain([self.diff.len()]);
        let part = |(from, to): (usize, usize)| {
            let text = &self.diff[from..to];
            let path = text[BEGIN.len()..].lines().next().unwrap_or_default().trim_end().to_owned();
            (path, text)
        };
        starts.iter().copied().zip(ends).map(part).collect()
    }

    /// The patch file that makes `after` of what `before` holds, under this one's head.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn refreshed(&self, before: &Tree, after: &BTreeMap<String, String>) -> Result<String, String> {
        let mut text = format!("{}\n\n", self.head.trim_end());
        for (path, after) in after {
            let before = before.read(path)?;
            if before != *after {
                let mut options = DiffOptions::new();
                options.set_context_len(CONTEXT);
                options.set_original_filename(format!("a/{path}")).set_modified_filename(format!("b/{path}"));
                text.push_str(&options.create_patch(&before, after).to_string());
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const HEAD: &str = "what: two is taken for one\njudge: sums\nseeds: 3\n\n";
    const DIFF: &str =
        "--- a/lib.rs\n+++ b/lib.rs\n@@ -2,3 +2,3 @@\n b\n-two\n+if planted(\"x\") { one } else { two }\n c\n";

    #[test]
    fn a_patch_applies_whole_or_says_how_to_refresh_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join("lib.rs"), text).unwrap();
        let mistake = Mistake::parse("x", &format!("{HEAD}{DIFF}")).unwrap();
        assert!(mistake.is_guarded() && mistake.open.is_none());
        assert_eq!((mistake.seeds, mistake.files()), (3, vec!["lib.rs".to_owned()]));
        // Lines before it have come; its own are as they were.
        write("a\na\na\nb\ntwo\nc\n");
        let mut tree = Tree::new(dir.path());
        tree.apply(&mistake).unwrap();
        assert_eq!(tree.changed()["lib.rs"], "a\na\na\nb\nif planted(\"x\") { one } else { two }\nc\n");
        assert!(tree.apply(&mistake).is_err(), "twice");

        write("a\nb\nthree\nc\n");
        let mut tree = Tree::new(dir.path());
        let error = tree.apply(&mistake).unwrap_err();
        assert!(error.contains("x.patch") && error.contains("--refresh x"), "{error}");
        assert!(tree.changed().is_empty());
        let by_hand =
            BTreeMap::from([("lib.rs".to_owned(), "a\nb\nif planted(\"x\") { 1 } else { three }\nc\n".to_owned())]);
        let refreshed = Mistake::parse("x", &mistake.refreshed(&tree, &by_hand).unwrap()).unwrap();
        tree.apply(&refreshed).unwrap();
        assert_eq!((tree.changed(), refreshed.what), (&by_hand, mistake.what));
    }

    #[test]
    fn a_head_must_be_complete_and_a_mistake_behind_its_own_switch() {
        assert!(Mistake::parse("x", &format!("what: a\nseeds: 3\n\n{DIFF}")).unwrap_err().contains("judge"));
        assert!(Mistake::parse("x", &format!("{HEAD}who: me\n{DIFF}")).unwrap_err().contains("who"));
        assert!(Mistake::parse("x", &format!("what: a\njudge: b\nseeds: many\n{DIFF}")).is_err());
        assert!(!Mistake::parse("y", &format!("{HEAD}{DIFF}")).unwrap().is_guarded());
    }
}
