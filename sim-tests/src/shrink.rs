//! Makes a failing run smaller: leaves out faults and steps of clients, as long as it fails in the same property.
//!
//! Faults and steps are drawn each by itself, so leaving one out changes no other, only what follows from it. Delta
//! debugging (Zeller and Hildebrandt, 2002): halves first, then smaller parts, until no single one can go.
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// What is left out of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Without {
    /// Faults, by number.
    pub faults: BTreeSet<usize>,
    /// Steps of clients: (client, step).
    pub steps: BTreeSet<(u64, u64)>,
}

impl Without {
    /// Reads what [`Without::print`] writes.
    ///
    /// # Errors
    /// Where a text is not of that form.
    pub fn parse(faults: &str, steps: &str) -> Result<Self, String> {
        let mut without = Self::default();
        for number in numbers(faults)? {
            without.faults.insert(usize::try_from(number).map_err(|error| error.to_string())?);
        }
        for part in steps.split(';').filter(|part| !part.is_empty()) {
            let (client, steps) = part.split_once(':').ok_or_else(|| format!("{part:?} is not CLIENT:STEPS"))?;
            let client: u64 = client.parse().map_err(|_| format!("{client:?} is no client's number"))?;
            without.steps.extend(numbers(steps)?.into_iter().map(|step| (client, step)));
        }
        Ok(without)
    }

    /// The faults as `3,4,7-9`, and the steps as `0:3,4;2:0-5`.
    pub fn print(&self) -> (String, String) {
        let faults = ranges(self.faults.iter().map(|fault| *fault as u64));
        let clients: BTreeSet<u64> = self.steps.iter().map(|(client, _)| *client).collect();
        let steps = clients.into_iter().map(|client| {
            let of_client = self.steps.iter().filter(|(by, _)| *by == client).map(|(_, step)| *step);
            format!("{client}:{}", ranges(of_client))
        });
        (faults, steps.collect::<Vec<_>>().join(";"))
    }
}

fn numbers(text: &str) -> Result<BTreeSet<u64>, String> {
    let mut numbers = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse =
            |number: &str| number.parse::<u64>().map_err(|_| format!("{part:?} is no number, and no FIRST-LAST"));
        numbers.extend(parse(first)?..=parse(last)?);
    }
    Ok(numbers)
}

fn ranges(numbers: impl Iterator<Item = u64>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let mut text = String::new();
    for (first, last) in runs {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = match first == last {
            true => write!(text, "{comma}{first}"),
            false => write!(text, "{comma}{first}-{last}"),
        };
    }
    text
}

/// The numbers of the faults that a failing run's report lists.
pub fn faults_in(report: &str) -> BTreeSet<usize> {
    let number = |line: &str| {
        let (number, rest) = line.trim_start().split_once(' ')?;
        rest.contains(" s to ").then(|| number.parse().ok()).flatten()
    };
    report.lines().filter_map(number).collect()
}

/// The property that a failing run's report names first: what stands before the first colon behind the list of faults.
pub fn property_of(report: &str) -> String {
    let is_violation = |line: &&str| {
        !line.starts_with(' ') && !line.starts_with("seed ") && line.contains(": ") && !line.starts_with("replay")
    };
    let first = report.lines().find(is_violation).unwrap_or_default();
    first.split(": ").next().unwrap_or_default().to_owned()
}

/// Something that may be left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Part {
    Fault(usize),
    Step(u64, u64),
}

/// Leaves out as much as possible of `faults` and of the steps of all clients while `fails`.
pub fn shrink(
    start: Without,
    faults: &BTreeSet<usize>,
    clients: u64,
    steps: u64,
    fails: &mut dyn FnMut(&Without) -> bool,
) -> Without {
    let mut smallest = start;
    let faults = faults.iter().map(|fault| Part::Fault(*fault));
    let steps = (0..clients).flat_map(|client| (0..steps).map(move |step| Part::Step(client, step)));
    // Faults first: few, and each of them costs much.
    for parts in [faults.collect::<Vec<_>>(), steps.collect()] {
        let without = |smallest: &Without, parts: &[Part]| {
            let mut without = smallest.clone();
            for part in parts {
                match part {
                    Part::Fault(fault) => drop(without.faults.insert(*fault)),
                    Part::Step(client, step) => drop(without.steps.insert((*client, *step))),
                }
            }
            without
        };
        let is_in = |smallest: &Without, part: &Part| match part {
            Part::Fault(fault) => !smallest.faults.contains(fault),
            Part::Step(client, step) => !smallest.steps.contains(&(*client, *step)),
        };
        let mut size = parts.len().div_ceil(2).max(1);
        loop {
            let left: Vec<Part> = parts.iter().filter(|part| is_in(&smallest, part)).copied().collect();
            let mut went = false;
            for chunk in left.chunks(size) {
                let candidate = without(&smallest, chunk);
                if fails(&candidate) {
                    (smallest, went) = (candidate, true);
                }
            }
            match (size, went) {
                (1, false) => break,
                (1, true) => {}
                _ => size = size.div_ceil(2),
            }
        }
    }
    smallest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn only_what_the_failure_needs_is_left() {
        let faults: BTreeSet<usize> = (0..12).collect();
        let mut runs = 0;
        let smallest = shrink(Without::default(), &faults, 3, 70, &mut |without| {
            runs += 1;
            let steps = [(0, 5), (2, 60), (2, 61)];
            !without.faults.contains(&3)
                && !without.faults.contains(&9)
                && steps.iter().all(|step| !without.steps.contains(step))
        });
        assert_eq!((smallest.faults.len(), smallest.steps.len()), (10, 207), "in {runs} runs");
        assert!(runs < 150, "{runs}");
        let (faults, steps) = smallest.print();
        assert_eq!(faults, "0-2,4-8,10-11");
        assert_eq!(steps, "0:0-4,6-69;1:0-69;2:0-59,62-69");
        assert_eq!(Without::parse(&faults, &steps).unwrap(), smallest);
    }

    #[test]
    fn a_report_names_its_faults_and_its_first_property() {
        let report = "seed 7: 9 operations, 1.0 s simulated, trace ab\n  injected: crash 2\n    0    5.000 s to    6.000 s  \
                      Crash(Node(1))\n   11    5.000 s to    6.000 s  Wipe(2)\na term has one leader: [ 9] meta\nother: x\n";
        assert_eq!(faults_in(report), BTreeSet::from([0, 11]));
        assert_eq!(property_of(report), "a term has one leader");
        assert!(Without::parse("x", "").is_err() && Without::parse("", "3").is_err());
    }
}
