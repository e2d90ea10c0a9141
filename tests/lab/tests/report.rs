//! `lab-report` as `scripts/lab` and CI run it: streams and exit statuses.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const CONSOLE: &str = "[    0.0] Linux\r\nlab: boot\r\n\
    @lab {\"subject\":\"qemu-q35\",\"figure\":\"boot\",\"value\":1736}\r\n\
    @lab {\"subject\":\"outrigger\",\"figure\":\"boot\",\"value\":1300}\r\n";

fn report(arguments: &[&str], directory: &Path, console: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lab-report"))
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("lab-report starts");
    // One that has already given up does not read it.
    let _ = child.stdin.take().expect("it is piped").write_all(console.as_bytes());
    child.wait_with_output().expect("lab-report ends")
}

fn assert_one_line(output: &Output, status: i32, words: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{told}");
    assert!(told.starts_with("lab-report: ") && told.contains(words) && told.lines().count() == 1, "{told}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_cannot_be_done_is_one_line_and_a_status() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("bad.json"), "{}").unwrap();
    let cases: [(&[&str], &str, i32, &str); 7] = [
        (&["--nonsense"], CONSOLE, 2, "--nonsense"),
        (&["--compare", "bad.json", "bad.json"], "", 2, "bad.json: is not a lab.json"),
        // One line: the console's progress has not been read.
        (&["--baseline", "none.json"], CONSOLE, 2, "none.json: cannot be read: No such file"),
        (&["--out", "bad.json"], CONSOLE, 2, "cannot create --out bad.json"),
        (&[], "", 1, "the console carried no measurement"),
        (&[], "@lab {}\n", 1, "line 1 is no measurement: @lab {}: missing field `subject`"),
        (&["--out", "new"], "@lab {\"subject\":\"a\",\"figure\":\"b\",\"value\":1}\n", 1, "there is no figure 'b'"),
    ];
    for (arguments, console, status, words) in cases {
        assert_one_line(&report(arguments, path, console), status, words);
    }
    assert_eq!(fs::read_dir(path.join("new")).unwrap().count(), 0, "no file of a run that failed");
}

#[test]
fn a_run_compared_with_itself_has_not_moved() {
    let directory = tempfile::tempdir().unwrap();
    let first = report(&["--out", "run/1"], directory.path(), CONSOLE);
    assert_eq!((first.status.code(), String::from_utf8(first.stderr).unwrap()), (Some(0), "lab: boot\n".into()));
    let json = directory.path().join("run/1/lab.json");
    let second = report(&["--baseline", "run/1/lab.json"], directory.path(), CONSOLE);
    let compared = report(&["--compare", "run/1/lab.json", "run/1/lab.json"], directory.path(), "");
    let line = "0 of 2 values moved by more than 1 %: 0 better, 0 worse; 0 missing, 0 new\n";
    assert_eq!(String::from_utf8(compared.stdout).unwrap(), line);
    let tables = String::from_utf8(first.stdout).unwrap();
    assert_eq!(String::from_utf8(second.stdout).unwrap(), format!("{tables}\n{line}"));
    assert!(fs::read_to_string(json).unwrap().contains("\"qemu-q35\": 1736.0"));
}

#[test]
fn what_moved_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    report(&["--out", "."], directory.path(), CONSOLE);
    let later = report(&["--baseline", "lab.json"], directory.path(), &CONSOLE.replace("1300", "1320"));
    let told = String::from_utf8(later.stdout).unwrap();
    assert_eq!(later.status.code(), Some(0), "{told}");
    assert!(told.contains("+1.54   worse\n"), "{told}");
    assert!(told.ends_with("1 of 2 values moved by more than 1 %: 0 better, 1 worse; 0 missing, 0 new\n"), "{told}");
}
