//! The layers of the sandbox that hold on one host or another: the table in docs/THREAT-MODEL.md is what the stand-in reports. Its first
//! columns are measured on Debian's kernel, the last ones on the test bed's own.

use std::fs;
use std::os::unix::fs::chown;

use nix::errno::Errno;
use nix::libc;
use nix::sys::utsname::uname;
use outrigger_process::seal::{Layer, Sandbox};
use outrigger_tests::binaries::of_tests;
use outrigger_tests::hijack::stand_in::{self, How, Report};
use outrigger_tests::testbed::Testbed;
use tempfile::TempDir;

const DOCUMENT: &str = include_str!("../../docs/THREAT-MODEL.md");
/// The first cell of the table's first row.
const CORNER: &str = "| layer, by host |";

/// No account has this number.
const USER: u32 = 12345;
const MOST_USER_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";

/// A column of the table.
struct Host {
    name: &'static str,
    how: How,
    user_namespaces: bool,
}

impl Host {
    const fn new(name: &'static str, how: How) -> Self {
        Self { name, how, user_namespaces: true }
    }
}

fn hosts() -> Vec<Host> {
    let (root, user) = (How::by_root(Sandbox::On), How::by(USER));
    if uname().expect("there is a kernel").release().to_string_lossy().starts_with("6.12") {
        return vec![Host::new("6.12, root", root), Host::new("6.12, a user", user)];
    }
    vec![
        Host::new("6.1, root", root),
        Host::new("6.1, a user", user),
        Host { user_namespaces: false, ..Host::new("no user namespaces, root", root) },
        Host { user_namespaces: false, ..Host::new("no user namespaces, a user", user) },
        Host::new("a container, root", root.told("contained")),
        Host::new("a container, a user", user.told("contained")),
    ]
}

/// The version of Landlock (`Documentation/userspace-api/landlock.rst`), which says how much of it there is.
fn landlock() -> i64 {
    // SAFETY: with LANDLOCK_CREATE_RULESET_VERSION the call takes no attributes.
    Errno::result(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) }).unwrap_or(0)
}

fn cell(layer: Layer, report: &Report) -> String {
    match layer {
        _ if report.missing.iter().any(|missing| missing == layer.name()) => "—".to_owned(),
        Layer::Landlock => format!("version {}", landlock()),
        _ => "yes".to_owned(),
    }
}

/// The document's column of this name, top to bottom.
fn documented(name: &str) -> Vec<String> {
    let mut rows =
        DOCUMENT.lines().skip_while(|line| !line.starts_with(CORNER)).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let heading = cells(rows.next().expect("the document has the table"));
    let column =
        heading.iter().position(|cell| cell == name).unwrap_or_else(|| panic!("no column '{name}' in {heading:?}"));
    rows.skip(1).map(|row| cells(row).swap_remove(column)).collect()
}

#[test]
fn the_table_has_a_row_for_each_layer() {
    let first = CORNER.trim_matches(['|', ' ']);
    assert_eq!(documented(first), Layer::ALL.map(|layer| layer.name().to_owned()));
}

#[test]
#[ignore = "runs in the test bed, whose root may do everything: as_documented_… run it"]
fn each_host_is_as_documented() {
    let directory = TempDir::new().unwrap();
    let image = directory.path().join("disk");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    for path in [directory.path(), &image] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    let options = format!("path={}", image.display());
    let most = fs::read_to_string(MOST_USER_NAMESPACES).expect("the kernel has user namespaces");
    let mut wrong = Vec::new();
    for Host { name, how, user_namespaces } in hosts() {
        fs::write(MOST_USER_NAMESPACES, if user_namespaces { &most } else { "0" }).unwrap();
        let report = stand_in::report(&of_tests("hijacked"), "blk", &options, how);
        // Whatever is missing: what is left refuses all of them.
        assert!(report.surprises().is_empty(), "{name}: {:#?}", report.surprises());
        let measured = Layer::ALL.map(|layer| cell(layer, &report));
        println!("{name:28} {}", measured.join(" | "));
        if documented(name) != measured {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "the document is wrong about {wrong:?}");
}

fn as_documented(testbed: Testbed) {
    let (testbed, run) = testbed.these_tests("each_host_is_as_documented", &["hijacked"]);
    testbed.run(&run);
}

#[test]
fn as_documented_on_debians_kernel() {
    as_documented(Testbed::new());
}

#[test]
#[ignore = "builds a kernel the first time; scripts/test --kernel runs it"]
fn as_documented_on_linux_6_12() {
    as_documented(Testbed::new().kernel("ioregionfd"));
}
