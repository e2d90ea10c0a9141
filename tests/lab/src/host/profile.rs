//! Where the time of a load went: perf samples the whole host every 50 µs, and what falls into a load is counted by process and function.
//! It takes no sample while the guest runs, so what is missing is the guest's share. Setting up and ending a load counts, too, but not
//! while the processor is idle.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::figure::Figure;

const DATA: &str = "/tmp/perf.data";
/// Samples in a second.
const FREQUENCY: &str = "20000";
/// Between two samples.
const PERIOD: Duration = Duration::from_micros(50);
/// Instead of a function, while the processor has nothing to do.
const IDLE: &str = "idle";
/// How many functions are shown.
const FUNCTIONS: usize = 40;

/// A recording under way.
#[derive(Debug)]
pub struct Profile {
    perf: Child,
    begun: Duration,
    loads: Vec<Load>,
}

#[derive(Debug)]
struct Load {
    figure: &'static Figure,
    value: f64,
    from: Duration,
    to: Duration,
}

impl Profile {
    /// Begins to record.
    pub fn start() -> io::Result<Self> {
        fs::write("/proc/sys/kernel/perf_event_max_sample_rate", FREQUENCY)?;
        fs::write("/proc/sys/kernel/perf_cpu_time_max_percent", "0")?;
        fs::write("/proc/sys/kernel/kptr_restrict", "0")?;
        let arguments =
            ["record", "-q", "-a", "-k", "mono", "-e", "cpu-clock", "-m", "4096", "-F", FREQUENCY, "-o", DATA];
        let perf = Command::new("perf").args(arguments).stdin(Stdio::null()).spawn()?;
        // Until it has set up its events.
        std::thread::sleep(Duration::from_secs(1));
        Ok(Self { perf, begun: Duration::ZERO, loads: Vec::new() })
    }

    /// A load begins.
    pub fn begin(&mut self) {
        self.begun = now();
    }

    /// The load ends; `value` is what it came to.
    pub fn end(&mut self, figure: &'static Figure, value: f64) {
        self.loads.push(Load { figure, value, from: self.begun, to: now() });
    }

    /// Prints what was found.
    pub fn finish(mut self) -> io::Result<()> {
        let pid = i32::try_from(self.perf.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), Signal::SIGINT)?;
        self.perf.wait()?;
        for load in &self.loads {
            let samples = load.samples()?;
            load.print(&samples);
        }
        fs::remove_file(DATA)
    }
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Numbers of samples, by process and function.
type Samples = BTreeMap<(String, String), u64>;

impl Load {
    fn samples(&self) -> io::Result<Samples> {
        let time = format!("{:.6},{:.6}", self.from.as_secs_f64(), self.to.as_secs_f64());
        let arguments = ["script", "-i", DATA, "-F", "comm,misc,ip,sym", "--time", &time];
        let mut script = Command::new("perf").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut samples = Samples::new();
        if let Some(output) = script.stdout.take() {
            for line in BufReader::new(output).lines() {
                if let Some(key) = parse(&line?) {
                    *samples.entry(key).or_default() += 1;
                }
            }
        }
        script.wait()?;
        Ok(samples)
    }

    #[expect(clippy::cast_precision_loss, reason = "a few thousand samples")]
    fn print(&self, samples: &Samples) {
        let idle = samples.iter().filter(|((_, function), _)| function == IDLE).map(|(_, count)| count).sum::<u64>();
        let total = samples.values().sum::<u64>();
        let periods = (self.to - self.from).as_secs_f64() / PERIOD.as_secs_f64();
        let busy = (periods - idle as f64).max(1.0);
        let share = |periods: f64| self.value * periods / busy;
        let per = |count: u64| share(count as f64);
        let (unit, title) = (self.figure.unit.symbol(), self.figure.title);
        println!("lab: {title}: {:.2} {unit}, {total} samples", self.value);
        let mut processes = BTreeMap::<_, u64>::new();
        for ((process, function), count) in samples.iter().filter(|((_, function), _)| function != IDLE) {
            let part = if function.starts_with("[k] ") { "host kernel" } else { "user space" };
            *processes.entry((process, part)).or_default() += count;
        }
        let mut processes: Vec<_> = processes.into_iter().collect();
        processes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for ((process, part), count) in processes {
            println!("lab:   {:8.3} {unit}  {process:<16} {part}", per(count));
        }
        println!("lab:   {:8.3} {unit}  guest", share(periods - total as f64));
        println!("lab:   the functions with the most:");
        let mut functions: Vec<_> = samples.iter().filter(|((_, function), _)| function != IDLE).collect();
        functions.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for ((process, function), count) in functions.into_iter().take(FUNCTIONS) {
            println!("lab:   {:8.3} {unit}  {process:<16} {function}", per(*count));
        }
    }
}

/// A line of perf-script(1): the process (its name may hold spaces), in what mode the processor was, an address, a symbol.
fn parse(line: &str) -> Option<(String, String)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let hexadecimal = |word: &&str| word.len() >= 4 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let address = (2..words.len()).find(|&at| hexadecimal(&words[at]))?;
    let symbol = words[address + 1..].join(" ");
    let process = words[..address - 1].join(" ");
    match words[address - 1] {
        _ if process == "swapper" && symbol.contains("halt") => Some((process, IDLE.to_owned())),
        "K" => Some((process, format!("[k] {symbol}"))),
        _ => Some((process, symbol)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let parsed = |line| parse(line).map(|(process, function)| format!("{process}|{function}"));
        assert_eq!(
            parsed("outrigger-blk K  ffffffff81a1b2c3 copy_user").as_deref(),
            Some("outrigger-blk|[k] copy_user")
        );
        assert_eq!(parsed("blk-q0 U 55d4a1b2c3 <core::x as y>::z").as_deref(), Some("blk-q0|<core::x as y>::z"));
        assert_eq!(parsed("swapper K ffffffff81a1b2c3 native_safe_halt").as_deref(), Some("swapper|idle"));
        assert_eq!(parsed(""), None);
    }
}
