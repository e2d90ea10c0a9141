//! The examples of docs/CONTROL.md, run as they are printed, in their order, beside a guest with a disk.

use std::process::Command;

use outrigger_tests::control::Controlled;
use outrigger_tests::outrigger::LIMIT;
use outrigger_tests::process::run;
use outrigger_tests::{binaries, repository};

/// A command and what the document says that it prints.
#[derive(Debug, Default)]
struct Example {
    command: String,
    output: Vec<String>,
}

/// The examples in the blocks that show a console: lines after `$ ` are commands, other lines their output.
fn examples(document: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut in_block = false;
    for line in document.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => in_block = line == "```console",
            Some(command) if in_block => examples.push(Example { command: command.into(), ..Example::default() }),
            None if in_block => examples.last_mut().expect("a command comes first").output.push(line.into()),
            _ => {}
        }
    }
    examples
}

/// Where the programs are.
fn directory() -> String {
    binaries::directory().display().to_string()
}

/// A line with what differs from run to run left out: process numbers, times, and the width of the columns that hold them.
fn comparable(line: &str) -> String {
    let line = line.replace(&directory(), "…");
    let varies =
        ["\"pid\"", "\"pause_ms\"", "another process serves it", "\"uptime_ms\"", "\"last_outage_ms\"", "outrigger"]
            .iter()
            .any(|word| line.contains(word));
    let words = line.split_whitespace().map(|word| {
        if varies && word.contains(|character: char| character.is_ascii_digit()) {
            word.split(|character: char| character.is_ascii_digit()).filter(|part| !part.is_empty()).collect()
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Whether `output` is what `expected` says, in which `…` stands for any lines.
fn matches(expected: &[String], output: &[String]) -> bool {
    match expected {
        [] => output.is_empty(),
        [any, rest @ ..] if any == "…" => (0..=output.len()).any(|at| matches(rest, &output[at..])),
        [line, rest @ ..] => output.first() == Some(line) && matches(rest, &output[1..]),
    }
}

#[test]
fn every_example_works_as_printed() {
    let document = std::fs::read_to_string(repository::file("docs/CONTROL.md")).expect("the document is there");
    let examples = examples(&document);
    assert!(examples.iter().filter(|example| example.command.starts_with("curl ")).count() >= 4, "{examples:#?}");
    let guest = Controlled::spinning();
    // Those that end the guest come last, and what is said after them is about errors.
    let (last, others): (Vec<_>, Vec<_>) = examples
        .iter()
        .partition(|example| example.command.contains("--request POST") && example.command.ends_with("/v1/stop"));
    assert_eq!(last.len(), 1, "{last:?}");
    let path = format!("{}:{}", directory(), std::env::var("PATH").unwrap_or_default());
    for Example { command, output } in others.into_iter().chain(last) {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(guest.directory.path()).env("PATH", &path);
        let ended = run(&mut shell, LIMIT);
        ended.expect_code(0);
        let lines = |lines: &mut dyn Iterator<Item = &str>| -> Vec<String> { lines.map(comparable).collect() };
        let (expected, printed) = (lines(&mut output.iter().map(String::as_str)), lines(&mut ended.stdout.lines()));
        assert!(matches(&expected, &printed), "$ {command}\nprints\n{ended}\nand not\n{}", output.join("\n"));
    }
    guest.vmm.finish().expect_code(0);
}

/// The comparison itself.
#[test]
fn a_line_that_is_wrong_is_noticed() {
    let lines = |text: &str| -> Vec<String> { text.lines().map(comparable).collect() };
    assert!(matches(&lines("a\n…\n  \"pid\": 12,\nb"), &lines("a\nx\ny\n\"pid\": 7,\nb")));
    assert!(!matches(&lines("a\n…\nb"), &lines("a\nx")));
    assert!(!matches(&lines("404"), &lines("405")));
    assert!(!matches(&lines("\"pid\": 12,"), &lines("\"pid\": null,")));
}
