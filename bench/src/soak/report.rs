//! The report of a soak, in Markdown.
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::clients::lock;
use super::faults::Kind;
use super::resources::{NAMES, summary};
use super::{Outcome, Settings, Struck};

/// Writes it. `command` replays the run; `notes` say what the run could not do.
pub fn markdown(outcome: &Outcome, settings: &Settings, command: &str, notes: &[String]) -> String {
    let mut text = String::from("# Soak\n\n");
    // Writing to a string does not fail.
    let _ = write(&mut text, outcome, settings, command, notes);
    text
}

fn write(
    out: &mut String,
    outcome: &Outcome,
    settings: &Settings,
    command: &str,
    notes: &[String],
) -> std::fmt::Result {
    let violations = lock(&outcome.shared.violations);
    let verdict = match (&outcome.ended_early, violations.len()) {
        (_, 1..) => format!("**{} violations**", violations.len()),
        (Some(reason), 0) => format!("no violation until it was ended early: {reason}"),
        (None, 0) => "no violation".to_owned(),
    };
    writeln!(out, "{verdict}, {} faults, {:.0} s.\n", outcome.struck.len(), outcome.took.as_secs_f64())?;
    writeln!(out, "Replay with `{command}` (the same operations and faults; timing is real).\n")?;
    let Settings { seed, clients, keys, pause, shards, seal_points, heal_within, bounds, .. } = settings;
    writeln!(
        out,
        "Configuration: seed {seed}, {clients} clients with {keys} keys each and pauses up to {} ms, {shards} shards, \
         segments from {seal_points} vectors on. Bounds: healed within {} s; a process {} MiB of RSS, {} MiB on disk, {} \
         descriptors, {} threads.\n",
        pause.as_millis(),
        heal_within.as_secs(),
        bounds.rss >> 20,
        bounds.disk >> 20,
        bounds.descriptors,
        bounds.threads
    )?;
    notes.iter().try_for_each(|note| writeln!(out, "Note: {note}\n"))?;

    writeln!(out, "## Violations\n")?;
    match violations.as_slice() {
        [] => writeln!(out, "None.\n")?,
        all => all.iter().take(100).try_for_each(|line| writeln!(out, "- {line}"))?,
    }

    writeln!(out, "\n## Operations\n\n| operation | answered | not, or in part |\n|---|---|---|")?;
    for (kind, (answered, not)) in lock(&outcome.shared.counts).iter() {
        writeln!(out, "| {kind} | {answered} | {not} |")?;
    }
    for (kind, (count, last)) in lock(&outcome.shared.errors).iter() {
        writeln!(out, "\n{kind} {count} times, the last: {last}")?;
    }

    writeln!(out, "\n## Faults by kind\n")?;
    writeln!(out, "| fault | times | healed after, median / longest | longest stall, any shard | one shard |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    let mut kinds: BTreeMap<Kind, Vec<&Struck>> = BTreeMap::new();
    outcome.struck.iter().for_each(|struck| kinds.entry(struck.kind).or_default().push(struck));
    for (kind, struck) in kinds {
        let mut healed: Vec<Duration> = struck.iter().filter_map(|struck| struck.healed_after).collect();
        let (median, longest) =
            (crate::figures::quantile(&mut healed, 0.5), crate::figures::quantile(&mut healed, 1.0));
        let any = struck.iter().map(|struck| struck.stall.0).max().unwrap_or_default();
        let one = struck.iter().map(|struck| struck.stall.1).max().unwrap_or_default();
        let ms = |duration: Duration| duration.as_millis();
        writeln!(
            out,
            "| {kind} | {} | {} / {} ms | {} ms | {} ms |",
            struck.len(),
            ms(median),
            ms(longest),
            ms(any),
            ms(one)
        )?;
    }

    let quiet = &outcome.quiet;
    let least = quiet.iter().map(|at| at.recall).fold(1.0, f64::min);
    writeln!(
        out,
        "\n## Quiet points\n\n{}, each read through every replica; {} points at the last, {} keys of unknown outcome \
         settled, least recall {least:.3}.",
        quiet.len(),
        quiet.last().map_or(0, |at| at.points),
        quiet.iter().map(|at| at.settled).sum::<usize>()
    )?;

    writeln!(out, "\n## Resources\n\n| process | what | least | median | most | last | growth an hour |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for (name, curves) in &outcome.curves {
        for (what, curve) in NAMES.iter().zip(curves) {
            if let Some([least, median, most, last, slope]) = summary(curve) {
                writeln!(out, "| {name} | {what} | {least:.0} | {median:.0} | {most:.0} | {last:.0} | {slope:+.1} |")?;
            }
        }
    }

    writeln!(out, "\n## Every fault\n\n| at, s | fault | | healed after, ms | stall, any shard, ms | one shard, ms |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for Struck { kind, detail, at, healed_after, stall } in &outcome.struck {
        let healed = healed_after.map_or("not".to_owned(), |after| after.as_millis().to_string());
        let (any, one) = (stall.0.as_millis(), stall.1.as_millis());
        writeln!(out, "| {at:.1} | {kind} | {detail} | {healed} | {any} | {one} |")?;
    }
    Ok(())
}
