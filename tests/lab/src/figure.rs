//! The figures: name, unit and the project's aim for each.

/// The unit of a figure. Time is that of the test bed's host, where one executed instruction takes one nanosecond, so
/// each time is a count of the instructions of guest, host kernel, VMM and devices together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 10⁻³ s.
    Milliseconds,
    /// 10⁻⁶ s per operation.
    Microseconds,
    /// 10⁻⁹ s per byte.
    NanosecondsPerByte,
    /// 2²⁰ bytes.
    Mebibytes,
    /// 10⁻⁶ s in each second: the host's work while guests are idle.
    MicrosecondsPerSecond,
    /// How many there are.
    Count,
}

impl Unit {
    /// As tables show it.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::NanosecondsPerByte => "ns/byte",
            Self::Mebibytes => "MiB",
            Self::MicrosecondsPerSecond => "µs/s",
            Self::Count => "–",
        }
    }

    /// The value in this unit: `count` operations, bytes or seconds took `nanoseconds`.
    #[expect(clippy::cast_precision_loss, reason = "durations and counts are far below 2^52")]
    pub fn per(self, nanoseconds: u64, count: u64) -> f64 {
        let each = nanoseconds as f64 / count as f64;
        match self {
            Self::Milliseconds => each / 1e6,
            Self::Microseconds | Self::MicrosecondsPerSecond => each / 1e3,
            Self::NanosecondsPerByte | Self::Count => each,
            Self::Mebibytes => each / f64::from(1 << 20),
        }
    }
}

/// One row of the report. Less is better in all of them.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its name in measurements.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// The project's aim: at most this much, on the test bed of docs/PERFORMANCE.md.
    pub aim: Option<f64>,
}

const fn figure(name: &'static str, title: &'static str, unit: Unit, aim: Option<f64>) -> Figure {
    Figure { name, title, unit, aim }
}

/// All figures, in the order of the report.
pub const FIGURES: &[Figure] = &[
    figure("boot", "boot, fork of the VMM to /init", Unit::Milliseconds, Some(1300.0)),
    figure("ready", "fork of the VMM to drivers attached", Unit::Milliseconds, None),
    figure("read-4k-qd1", "4 KiB random read, depth 1", Unit::Microseconds, Some(38.0)),
    figure("read-4k-qd32", "4 KiB random read, depth 32", Unit::Microseconds, Some(11.0)),
    figure("write-4k-qd1", "4 KiB random write, depth 1", Unit::Microseconds, Some(42.0)),
    figure("write-4k-qd32", "4 KiB random write, depth 32", Unit::Microseconds, Some(13.5)),
    figure("read-128k-qd4", "128 KiB sequential read, depth 4", Unit::Microseconds, Some(78.0)),
    figure("write-128k-qd4", "128 KiB sequential write, depth 4", Unit::Microseconds, None),
    figure("write-flush", "4 KiB random write and flush", Unit::Microseconds, None),
    figure("tcp-to-host", "TCP stream, guest to host", Unit::NanosecondsPerByte, Some(1.6)),
    figure("tcp-to-guest", "TCP stream, host to guest", Unit::NanosecondsPerByte, Some(1.55)),
    figure("tcp-rr", "TCP request and response, 64 bytes", Unit::Microseconds, Some(80.0)),
    figure("udp-to-host", "UDP packet of 64 bytes, guest to host", Unit::Microseconds, None),
    figure("register-read", "register read (virtio device_status)", Unit::Microseconds, None),
    figure("access-read", "register read", Unit::Microseconds, None),
    figure("access-write", "acknowledged write", Unit::Microseconds, None),
    figure("access-posted", "posted write, doorbell", Unit::Microseconds, None),
    figure("access-doorbell", "doorbell by eventfd", Unit::Microseconds, None),
    figure("restart-qd1", "pause of 4 KiB reads, depth 1", Unit::Milliseconds, Some(8.0)),
    figure("restart-qd32", "pause of 4 KiB reads, depth 32", Unit::Milliseconds, Some(8.0)),
    figure("memory-vmm", "private memory of the VMM", Unit::Mebibytes, Some(3.0)),
    figure("memory-blk", "private memory of the disk's process", Unit::Mebibytes, Some(1.5)),
    figure("memory-net", "private memory of the network card's process", Unit::Mebibytes, Some(1.5)),
    figure("memory-all", "private memory of the VMM and its device processes", Unit::Mebibytes, None),
    figure("threads", "threads of the VMM and its device processes", Unit::Count, None),
    figure("descriptors", "descriptors of the VMM", Unit::Count, None),
    figure("idle", "idle, all that the host's processor does", Unit::MicrosecondsPerSecond, None),
    figure("size-vmm", "size of the VMM's program", Unit::Mebibytes, Some(3.0)),
    figure("size-blk", "size of the disk's program", Unit::Mebibytes, Some(1.5)),
    figure("size-net", "size of the network card's program", Unit::Mebibytes, Some(1.5)),
];

impl Figure {
    /// By its name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FIGURES.iter().find(|figure| figure.name == name)
    }
}
