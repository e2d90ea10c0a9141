//! A status as people read it. Every text in it comes from elsewhere, and is shown without obeying its control characters.

use std::time::Duration;

use outrigger_process::aligned::aligned;
use outrigger_process::options::one_line;

use crate::config::size::Size;
#[cfg(test)]
use crate::control::api::status::SandboxStatus;
use crate::control::api::status::{DeviceState, DeviceStatus, RunState, Status};

const HEADINGS: [&str; 9] =
    ["slot", "state", "restarts", "replaced", "last outage", "guest RAM", "sandbox", "process", "device"];

/// The run on one line, and its devices as a table.
pub(super) fn status(status: &Status) -> String {
    let Status { version, pid, vcpus, .. } = status;
    let state = match status.state {
        RunState::Starting => "starting",
        RunState::Running => "running",
        RunState::Ending => "ending",
    };
    let (uptime, memory) = (duration(status.uptime_ms), Size(status.memory_bytes));
    let vcpus = format!("{vcpus} vCPU{}", if *vcpus == 1 { "" } else { "s" });
    let version = one_line(version);
    let mut text = format!("outrigger {version} (process {pid}): {state}, up {uptime}, {vcpus}, {memory} of RAM\n");
    if !status.devices.is_empty() {
        let rows: Vec<_> = std::iter::once(HEADINGS.map(str::to_owned)).chain(status.devices.iter().map(row)).collect();
        text.push('\n');
        text.push_str(&aligned(&rows));
    }
    text
}

fn row(device: &DeviceStatus) -> [String; 9] {
    let state = match device.state {
        DeviceState::Serving => "serving",
        DeviceState::Restarting => "restarting",
        DeviceState::Withdrawn => "withdrawn",
    };
    let program = device.program.as_ref().map(|program| one_line(program.rsplit('/').next().unwrap_or_default()));
    let process = match (program, device.pid) {
        (Some(program), Some(pid)) => format!("{program} ({pid})"),
        (Some(program), None) => program,
        (None, _) => "-".to_owned(),
    };
    let sandbox = match &device.sandbox {
        Some(sandbox) if sandbox.missing.is_empty() => "complete",
        Some(_) => "partial",
        None => "-",
    };
    [
        one_line(device.slot.strip_prefix("0000:").unwrap_or(&device.slot)),
        state.to_owned(),
        device.restarts.to_string(),
        device.replacements.to_string(),
        device.last_outage_ms.map_or_else(|| "-".to_owned(), |outage| format!("{outage:.1} ms")),
        one_line(&device.dma),
        sandbox.to_owned(),
        process,
        one_line(&device.label),
    ]
}

/// `12 s`, `3 min 4 s`, `5 h 6 min`, `7 d 8 h`.
fn duration(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_line_and_a_table() {
        let device = |label: &str, state, restarts, outage| DeviceStatus {
            slot: "0000:00:01.0".into(),
            label: label.into(),
            program: Some("/usr/bin/outrigger-blk".into()),
            socket: None,
            pid: Some(17),
            dma: "shared".into(),
            sandbox: Some(SandboxStatus { missing: Vec::new() }),
            journal: true,
            state,
            restarts,
            replacements: 1,
            last_outage_ms: outage,
            longest_outage_ms: outage,
            paths: Vec::new(),
        };
        let of_a_server = DeviceStatus {
            program: None,
            pid: None,
            sandbox: None,
            ..device("--net\n\x1b[2J", DeviceState::Restarting, 12, Some(7.25))
        };
        let mut shown = Status {
            version: "0.1.0".into(),
            pid: 4,
            state: RunState::Running,
            uptime_ms: 61_500,
            vcpus: 1,
            memory_bytes: 512 << 20,
            devices: vec![device("--disk path=a", DeviceState::Serving, 0, None), of_a_server],
        };
        let wanted = "outrigger 0.1.0 (process 4): running, up 1 min 1 s, 1 vCPU, 512M of RAM\n\
            \n\
            slot     state       restarts  replaced  last outage  guest RAM  sandbox   process             device\n\
            00:01.0  serving     0         1         -            shared     complete  outrigger-blk (17)  --disk path=a\n\
            00:01.0  restarting  12        1         7.2 ms       shared     -         -                   --net\\n\\u{1b}[2J\n";
        assert_eq!(status(&shown), wanted);
        shown.devices.clear();
        assert_eq!(status(&shown).lines().count(), 1);
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [(0, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (7261, "2 h 1 min"), (90_000, "1 d 1 h")] {
            assert_eq!(duration(seconds * 1000), text);
        }
    }
}
