//! A first process before and after its work.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use super::access::Target;
use crate::figure::Figure;

/// The guest's end of the network.
const ADDRESS: &str = "192.168.78.2/24";
/// How many times a device is looked for, a millisecond apart.
const PATIENCE: u32 = 2000;

/// Mounts /dev, /proc and /sys.
pub fn mount_all() -> io::Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    Ok(())
}

/// Loads all of /modules, in the order of the names.
pub fn load_modules() -> io::Result<()> {
    let mut modules: Vec<_> =
        fs::read_dir("/modules")?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    modules.sort();
    for module in modules {
        finit_module(fs::File::open(module)?, c"", ModuleInitFlags::empty())?;
    }
    Ok(())
}

/// The options of the kernel command line.
#[derive(Debug)]
pub struct Wanted {
    /// Which loads: `lab=FIGURE,FIGURE`.
    pub figures: Vec<&'static Figure>,
    /// How much of each load, and by how many threads.
    pub scale: Scale,
    /// The target of register accesses: `lab.target=1`, a page, or `nobody`.
    pub target: Target,
    /// `lab.serve`: stay for more, which the console's input names.
    pub serve: bool,
}

/// How much of a load, and by how many threads.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The divisor of the load, for slow subjects: `lab.part=8` is an eighth.
    pub part: usize,
    /// How many threads share it: `lab.threads=4`. Each has a processor and, for disk and streams, a queue of its own.
    pub threads: usize,
}

/// Reads the kernel command line.
pub fn wanted() -> io::Result<Wanted> {
    let words = fs::read_to_string("/proc/cmdline")?;
    let value = |key| words.split_whitespace().find_map(|word| word.strip_prefix(key));
    let known = |name| Figure::named(name).ok_or_else(|| io::Error::other(format!("no figure is called {name}")));
    let names = value("lab=").unwrap_or_default().split(',').filter(|name| !name.is_empty());
    let number = |key| value(key).map_or(Ok(1), str::parse).map_err(io::Error::other);
    let scale = Scale { part: number("lab.part=")?, threads: number("lab.threads=")? };
    let target = value("lab.target=").map_or(Some(Target::Nobody), Target::parse);
    let target = target.ok_or_else(|| io::Error::other("lab.target is neither a page nor nobody"))?;
    let serve = words.split_whitespace().any(|word| word == "lab.serve");
    Ok(Wanted { figures: names.map(known).collect::<io::Result<_>>()?, scale, target, serve })
}

/// Gives the network card its address.
pub fn network() -> io::Result<()> {
    wait_for("/sys/class/net/eth0")?;
    ip(&["addr", "add", ADDRESS, "dev", "eth0"])?;
    ip(&["link", "set", "eth0", "up"])
}

/// Brings every network card up, the first with its address.
pub fn all_networks() -> io::Result<()> {
    for card in 0.. {
        let name = format!("eth{card}");
        match Path::new("/sys/class/net").join(&name).exists() {
            true if card == 0 => network()?,
            true => ip(&["link", "set", &name, "up"])?,
            false => break,
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let status = Command::new("/bin/ip").args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip {}: {status}", arguments.join(" ")))) }
}

/// Waits until a device shows up.
pub fn wait_for(path: &str) -> io::Result<()> {
    for _ in 0..PATIENCE {
        if Path::new(path).exists() {
            return Ok(());
        }
        sleep(Duration::from_millis(1));
    }
    Err(io::Error::other(format!("no {path}")))
}

/// Ends the guest.
pub fn power_off() -> ! {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    // The first process must not return: the kernel panics, which ends the guest, too.
    panic!("cannot power off: {error}")
}
