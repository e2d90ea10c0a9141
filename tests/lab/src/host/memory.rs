//! How much memory a process has for itself: `Private_Clean` and `Private_Dirty` of /proc/PID/smaps (proc(5)), guest RAM apart.

use std::fs;
use std::io;

use super::subject::RAM;

/// Bytes private to a process, without mappings as large as guest RAM and without shared memory files.
pub fn private(pid: u32) -> io::Result<u64> {
    fs::read_to_string(format!("/proc/{pid}/smaps")).map(|smaps| sum(&smaps))
}

fn sum(smaps: &str) -> u64 {
    let (mut total, mut counts) = (0, true);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((start, end)) = first.split_once('-') {
            let bytes = u64::from_str_radix(end, 16).unwrap_or(0) - u64::from_str_radix(start, 16).unwrap_or(0);
            counts = bytes < RAM && !line.contains("/memfd:");
        } else if counts && (first == "Private_Clean:" || first == "Private_Dirty:") {
            total += words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10;
        }
    }
    total
}

/// The processes that a process has started: id and name.
pub fn children(parent: u32) -> io::Result<Vec<(u32, String)>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // It may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else { continue };
        if rest.split_whitespace().nth(1).and_then(|id| id.parse().ok()) == Some(parent) {
            children.push((pid, name.to_owned()));
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_does_not_count() {
        let smaps = "\
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Size:             262144 kB
Private_Dirty:    100000 kB
7f0020000000-7f0020001000 rw-s 00000000 00:01 5 /memfd:outrigger-guest-ram (deleted)
Private_Dirty:         4 kB
5500000000-5500002000 r-xp 00000000 00:02 9 /usr/bin/outrigger
Private_Clean:         8 kB
Private_Dirty:         4 kB
Shared_Clean:          4 kB
";
        assert_eq!(sum(smaps), 12 << 10);
    }

    #[test]
    fn a_real_process_has_some() {
        assert!(private(std::process::id()).unwrap() > 64 << 10);
        assert!(private(0).is_err());
    }
}
