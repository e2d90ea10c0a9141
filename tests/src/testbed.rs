//! `scripts/testbed`: a Linux host with working hardware virtualisation, in software, in which Outrigger boots Linux guests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::lock::Lock;
use crate::process::{Ended, run};
use crate::{binaries, guest, payload, repository};

/// How long the first use of a kernel of our own may take, on two processors that are busy.
const KERNEL_BUILD: Duration = Duration::from_secs(40 * 60);

/// The host's files, and its script. Outrigger's programs are in /bin, the guest's files in /guest.
pub struct Testbed {
    directory: TempDir,
    files: Vec<(PathBuf, String)>,
    disks: Vec<PathBuf>,
    minutes: u64,
    cpus: u32,
    kernel: Option<&'static str>,
    modules: Vec<String>,
    qemu: Vec<String>,
    has_qemu: bool,
    _one_at_a_time: Lock,
}

impl Testbed {
    /// Waits until no other test uses the test bed.
    pub fn new() -> Self {
        let lock = Lock::take("testbed");
        let directory = TempDir::new().expect("there is room for temporary files");
        binaries::copy_stripped(directory.path());
        let mut files: Vec<_> =
            binaries::NAMES.iter().map(|name| (directory.path().join(name), format!("/bin/{name}"))).collect();
        let guest = guest::directory();
        for name in ["vmlinuz", "initramfs.cpio.lz4"] {
            files.push((guest.join(name), format!("/guest/{name}")));
        }
        let (disks, modules, qemu) = Default::default();
        Self {
            directory,
            files,
            disks,
            minutes: 8,
            cpus: 1,
            kernel: None,
            modules,
            qemu,
            has_qemu: false,
            _one_at_a_time: lock,
        }
    }

    /// A place for files of the test's own.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Copies a file, with the libraries it needs if it is a program.
    pub fn file(mut self, from: impl Into<PathBuf>, to: &str) -> Self {
        self.files.push((from.into(), to.to_owned()));
        self
    }

    /// Adds an initramfs at `to` whose guest runs `script` and powers off.
    pub fn initramfs(self, script: &str, to: &str) -> Self {
        let name = to.rsplit('/').next().unwrap_or(to);
        let path = self.directory().join(name);
        guest::initramfs(&path, script, &[], &[]);
        self.file(path, to)
    }

    /// Attaches a file as the next of /dev/vda, /dev/vdb, …. Its content does not change, whatever is written.
    pub fn disk(mut self, path: impl Into<PathBuf>) -> Self {
        self.disks.push(path.into());
        self
    }

    /// Boots the host with a kernel of our own (`scripts/testbed -K`), which is built when it is first needed.
    pub fn kernel(mut self, name: &'static str) -> Self {
        self.kernel = Some(name);
        self
    }

    /// How many processors the host has; one unless told. Each is a thread, so what races in the host really does.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Loads more modules of the host's kernel, names separated by spaces.
    pub fn modules(mut self, names: &str) -> Self {
        self.modules.push(names.to_owned());
        self
    }

    /// Gives the host more hardware: arguments for QEMU, separated by spaces.
    pub fn qemu(mut self, arguments: &str) -> Self {
        self.qemu.push(arguments.to_owned());
        self
    }

    /// Puts QEMU 11 into the host: the command `qemu11`.
    pub fn with_qemu(mut self) -> Self {
        self.has_qemu = true;
        self
    }

    /// How long the script may take on a busy machine; eight minutes unless told.
    pub fn minutes(mut self, minutes: u64) -> Self {
        self.minutes = minutes;
        self
    }

    /// Adds this test program itself, the programs of these tests that it starts, and the payload. Returns the command by which
    /// the script runs the one test of it that is called `test`, which is ignored elsewhere.
    pub fn these_tests(mut self, test: &str, programs: &[&str]) -> (Self, String) {
        let this = std::env::current_exe().expect("a running program has a path");
        let mut add = |program: &Path, to: &str| {
            let copy = self.directory.path().join(to.replace('/', "-"));
            binaries::strip(program, &copy);
            self.files.push((copy, format!("/tests/{to}")));
        };
        add(&this, "deps/tests");
        programs.iter().for_each(|program| add(&binaries::of_tests(program), program));
        let ours = binaries::NAMES.map(|name| format!("ln -s /bin/{name} /tests/{name}")).join("; ");
        let run = format!(
            "{ours}; {}=/guest/payload /tests/deps/tests --exact --ignored --nocapture {test} || fail {test}\n",
            payload::VARIABLE
        );
        (self.file(payload::path(), "/guest/payload"), run)
    }

    /// Runs [`SHELL`] and then `script`, which must end with status 0.
    #[track_caller]
    pub fn run(&self, script: &str) -> Ended {
        let script_file = self.directory().join("script.sh");
        std::fs::write(&script_file, [SHELL, script].concat()).expect("the directory is ours");
        let mut command = Command::new(repository::file("scripts/testbed"));
        let limit = Duration::from_secs(self.minutes * 60);
        command.args(["-c", &self.cpus.to_string(), "-t", &limit.as_secs().to_string()]);
        if let Some(kernel) = self.kernel {
            command.args(["-K", kernel]);
        }
        for names in &self.modules {
            command.args(["-M", names]);
        }
        for arguments in &self.qemu {
            command.args(["-q", arguments]);
        }
        if self.has_qemu {
            command.arg("-Q");
        }
        for (from, to) in &self.files {
            command.arg("-f").arg(format!("{}:{to}", from.display()));
        }
        for disk in &self.disks {
            command.arg("-b").arg(disk);
        }
        // The script has its own deadline; ours is for a test bed that hangs.
        let build = if self.kernel.is_some() { KERNEL_BUILD } else { Duration::ZERO };
        let ended = run(command.arg(script_file), limit + build + Duration::from_secs(120));
        ended.expect_code(0);
        ended
    }
}

impl Default for Testbed {
    fn default() -> Self {
        Self::new()
    }
}

/// Shell functions that scripts for the test bed begin with.
///
/// `boot NAME STATUS ARGUMENT…` runs `outrigger run ARGUMENT…` with its output in /tmp/NAME.out and .err, prints both, and ends the
/// script with 1 when the exit status is another one. `has NAME WORDS` ends it when WORDS are not in that output. `nothing_left` ends it when
/// a process, a socket or a tap of Outrigger's is still there after ten seconds.
pub const SHELL: &str = r#"
set -u
fail() { echo "TEST FAILED: $*"; exit 1; }
boot() {
  name=$1 wanted=$2; shift 2
  timeout 400 outrigger run "$@" < /dev/null > /tmp/$name.out 2> /tmp/$name.err; status=$?
  sed "s/^/$name| /" /tmp/$name.out /tmp/$name.err
  [ $status = $wanted ] || fail "$name: status $status instead of $wanted"
}
has() { grep -q "$2" /tmp/$1.out || fail "$1: its output lacks '$2'"; }
left() { { pidof outrigger outrigger-blk outrigger-net outrigger-vfio; grep outrigger /proc/net/unix; ls -d /sys/class/net/or*; } 2> /dev/null; }
nothing_left() {
  for second in 0 1 2 3 4 5 6 7 8 9; do [ -n "$(left)" ] || return 0; sleep 1; done
  fail "left behind: $(left)"
}
"#;
