//! The choice, on descriptions made by hand.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use outrigger_protocol::client::{IoFd, IoFdKind, RegionInfo};
use outrigger_protocol::foreign::ForeignFd;
use outrigger_protocol::ioregionfd::SocketType;
use outrigger_protocol::wire::{IOREGION_POSTED_WRITES, REGION_READ, REGION_WRITE};
use vmm_sys_util::eventfd::EventFd;

use super::choose::mappable;
use super::*;
use crate::attach::discovery::MsixCapability;
use crate::pci::bar::Bars;

fn region(size: u64, areas: &[(u64, u64)]) -> RegionInfo {
    let file = std::fs::File::from(memfd_create("region", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    let fd = Some(file.into());
    let flags = REGION_READ | REGION_WRITE;
    RegionInfo { index: 2, flags, size, offset: 0, fd, areas: areas.to_vec(), region_type: None }
}

/// BAR 2 of 64 KiB, with these mappable areas and sub-regions, and its MSI-X table and pending bits at 0x3000.
fn description(areas: &[(u64, u64)], io_fds: Vec<IoFd>) -> Description {
    let absent = |index| RegionInfo { index, ..region(0, &[]) };
    let mut regions: Vec<_> = (0..7).map(absent).collect();
    regions[2] = region(0x1_0000, areas);
    let mut sub_regions = vec![Vec::new(); 7];
    sub_regions[2] = io_fds;
    Description {
        resettable: true,
        config: vec![0; 256],
        regions,
        io_fds: sub_regions,
        bars: Bars::default(),
        flr: None,
        intx: false,
        msi: None,
        msix: Some(MsixCapability { offset: 0x40, vectors: 2, table: (2, 0x3000), pba: (2, 0x3020) }),
    }
}

fn socket() -> Arc<ForeignFd> {
    let (ours, theirs) = SocketType::Stream.pair().unwrap();
    // The other end must be there, but does nothing.
    std::mem::forget(theirs);
    Arc::new(ours.into())
}

fn eventfd() -> Arc<ForeignFd> {
    let raw = EventFd::new(0).unwrap().into_raw_fd();
    // SAFETY: ownership moves from the EventFd.
    Arc::new(unsafe { OwnedFd::from_raw_fd(raw) }.into())
}

fn asked(offset: u64, size: u64, flags: u32) -> IoFd {
    IoFd { offset, size, kind: IoFdKind::Ioregionfd { user_data: offset, flags }, fd: socket() }
}

fn signalled(offset: u64, size: u64) -> IoFd {
    IoFd { offset, size, kind: IoFdKind::Ioeventfd { datamatch: None }, fd: eventfd() }
}

/// First byte and the text of each line, up to the first run of spaces in the text.
fn lines(description: &Description, allowed: AllowedPaths) -> Vec<(u64, String)> {
    let asked_by = if allowed.allow(PathName::Ioregionfd) { AskedBy::Kvm } else { AskedBy::Vmm };
    let plan = Plan::choose(description, 2, allowed, asked_by);
    assert_gapless(&plan, description.regions[2].size);
    let text = |text: &str| {
        let (name, reason) = text.split_once(' ').unwrap();
        let because = reason.split_once("; ").map(|(_, because)| format!(" ({because})"));
        format!("{name}{}", because.unwrap_or_default())
    };
    plan.lines().iter().map(|(range, line)| (range.start, text(line))).collect()
}

fn assert_gapless(plan: &Plan, size: u64) {
    let parts = &plan.parts;
    assert_eq!((parts[0].range.start, parts[parts.len() - 1].range.end), (0, size));
    for pair in parts.windows(2) {
        assert!(pair[0].range.start < pair[0].range.end && pair[0].range.end == pair[1].range.start, "{parts:?}");
    }
}

fn assert_lines(description: &Description, allowed: AllowedPaths, expected: &[(u64, &str)]) {
    let lines = lines(description, allowed);
    assert_eq!(lines.iter().map(|(at, text)| (*at, text.as_str())).collect::<Vec<_>>(), expected);
}

#[test]
fn all_kinds_mix_within_a_bar() {
    let io_fds = vec![asked(0x1000, 0x1000, 0), asked(0x2000, 0x1000, IOREGION_POSTED_WRITES), signalled(0x5000, 4)];
    assert_lines(
        &description(&[(0x6000, 0x1000)], io_fds),
        AllowedPaths::default(),
        &[
            (0, "message"),
            (0x1000, "ioregionfd"),
            (0x2000, "ioregionfd (writes are posted)"),
            (0x3000, "vmm"),
            (0x3020, "vmm"),
            (0x3028, "message"),
            (0x5000, "ioeventfd"),
            (0x5004, "message"),
            (0x6000, "mapped"),
            (0x7000, "message"),
        ],
    );
}

#[test]
fn what_is_forbidden_falls_to_the_next_path_that_is_offered() {
    let description = description(&[(0x6000, 0x2000)], vec![asked(0x4000, 0x3000, 0), signalled(0x5000, 4)]);
    let own = [(0, "message"), (0x3000, "vmm"), (0x3020, "vmm"), (0x3028, "message"), (0x4000, "ioregionfd")];
    let expect = |paths: &[PathName], rest: &[(u64, &str)]| {
        assert_lines(&description, AllowedPaths::only(paths), &[&own, rest].concat());
    };
    expect(
        &[PathName::Ioregionfd, PathName::Ioeventfd, PathName::Mapped],
        &[(0x5000, "ioeventfd"), (0x5004, "ioregionfd"), (0x6000, "mapped"), (0x8000, "message")],
    );
    expect(
        &[PathName::Ioregionfd],
        &[
            (0x5000, "ioregionfd (ioeventfd is forbidden by --paths)"),
            (0x5004, "ioregionfd"),
            (0x6000, "ioregionfd (mapped is forbidden by --paths)"),
            (0x7000, "message (mapped is forbidden by --paths)"),
            (0x8000, "message"),
        ],
    );
    assert_lines(
        &description,
        AllowedPaths::only(&[PathName::Mapped]),
        &[
            (0, "message"),
            (0x3000, "vmm"),
            (0x3020, "vmm"),
            (0x3028, "message"),
            (0x4000, "message (ioregionfd is forbidden by --paths; stand-in is forbidden by --paths)"),
            (
                0x5000,
                "message (ioeventfd is forbidden by --paths; ioregionfd is forbidden by --paths; stand-in is forbidden by --paths)",
            ),
            (0x5004, "message (ioregionfd is forbidden by --paths; stand-in is forbidden by --paths)"),
            (0x6000, "mapped (ioregionfd is forbidden by --paths; stand-in is forbidden by --paths)"),
            (0x7000, "mapped"),
            (0x8000, "message"),
        ],
    );
}

/// Accesses behind an obstacle would have offsets that the server does not expect.
#[test]
fn an_ioregionfd_ends_where_something_is_in_its_way() {
    let in_the_way = "message (something else is in the way of ioregionfd)";
    let description = description(
        &[],
        vec![asked(0x1000, 0x4000, 0), asked(0x800, 0x1000, 0), asked(0x3010, 0x100, 0), asked(0x1000, 0x10, 0)],
    );
    assert_lines(
        &description,
        AllowedPaths::default(),
        &[
            (0, "message"),
            (0x800, "ioregionfd"),
            (0x1000, "ioregionfd (something else is in the way of ioregionfd)"),
            (0x1010, "ioregionfd (something else is in the way of ioregionfd)"),
            (0x1800, "ioregionfd"),
            (0x3000, "vmm (something else is in the way of ioregionfd)"),
            (0x3020, "vmm (something else is in the way of ioregionfd)"),
            (0x3028, in_the_way),
            (0x3110, in_the_way),
            (0x5000, "message"),
        ],
    );
    let plan = Plan::choose(&description, 2, AllowedPaths::default(), AskedBy::Kvm);
    let ranges: Vec<_> = plan.ioregions.iter().map(|ioregion| ioregion.range.clone()).collect();
    assert_eq!(ranges, [0x800..0x1000, 0x1000..0x3000]);
}

#[test]
fn offers_that_kvm_has_no_name_for_go_by_message() {
    let mut no_socket = asked(0x3000, 0x10, 0);
    no_socket.fd = eventfd();
    no_socket.offset = 0x7000;
    let unfit = "message (KVM has no ioregionfd like the one offered)";
    let io_fds =
        vec![asked(0x4000, 0, IOREGION_POSTED_WRITES), asked(0x5000, 4, 1 << 7), no_socket, signalled(0x6000, 3)];
    assert_lines(
        &description(&[], io_fds),
        AllowedPaths::default(),
        &[
            (0, "message"),
            (0x3000, "vmm"),
            (0x3020, "vmm"),
            (0x3028, "message"),
            (0x4000, unfit),
            (0x4001, "message"),
            (0x5000, unfit),
            (0x5004, "message"),
            (0x6000, "message (KVM has no ioeventfd like the one offered)"),
            (0x6003, "message"),
            (0x7000, unfit),
            (0x7010, "message"),
        ],
    );
}

#[test]
fn pages_with_something_of_the_vmms_are_not_mapped() {
    let msix = [0x1800..0x1840, 0x3000..0x3008];
    assert_eq!(mappable(&region(0x8000, &[(0, 0x8000)]), &msix), [0..0x1000, 0x2000..0x3000, 0x4000..0x8000]);
}

#[test]
fn overlapping_areas_become_one_and_partial_pages_stay_out() {
    let areas = [(0x2000, 0x2000), (0, 0x3000), (0x6000, 0x800)];
    let mapped = mappable(&region(0x6800, &areas), &[]);
    assert_eq!(mapped.iter().map(|area| (area.start, area.end)).collect::<Vec<_>>(), [(0, 0x4000)]);
    assert!(mappable(&RegionInfo { fd: None, ..region(0x1000, &[(0, 0x1000)]) }, &[]).is_empty());
}

/// Doorbells of several widths and values at one place, one that reaches into the next, and a mapped page over others.
#[test]
fn doorbells_that_share_bytes_are_all_listed() {
    let of_value =
        |offset, value| IoFd { kind: IoFdKind::Ioeventfd { datamatch: Some(value) }, ..signalled(offset, 4) };
    let io_fds =
        vec![of_value(0x100, 2), signalled(0x104, 8), of_value(0x100, 1), signalled(0x108, 2), signalled(0x6000, 4)];
    let description = description(&[(0x6000, 0x1000)], io_fds);
    let plan = Plan::choose(&description, 2, AllowedPaths::default(), AskedBy::Kvm);
    assert_gapless(&plan, 0x1_0000);
    assert_eq!(plan.doorbells.len(), 4, "the mapped page takes writes before KVM could signal");
    let path = |at| plan.part(at).unwrap().path;
    assert_eq!(path(0x102), Path::Ioeventfd { first: 0, count: 2 });
    assert_eq!(path(0x107), Path::Ioeventfd { first: 2, count: 1 });
    assert_eq!(path(0x109), Path::Ioeventfd { first: 3, count: 1 });
    assert_eq!(path(0x10b), Path::Ioeventfd { first: 2, count: 1 });
    let signalled = plan.lines().into_iter().filter(|(_, line)| line.starts_with("ioeventfd")).count();
    assert_eq!(signalled, 5, "a line for each doorbell, two where another lies within");
}

#[test]
fn what_the_system_refuses_is_shown_as_message() {
    let io_fds = vec![asked(0x1000, 0x1000, 0), signalled(0x1800, 4), signalled(0x5000, 4)];
    let description = description(&[(0x6000, 0x1000)], io_fds);
    let plan = Plan::choose(&description, 2, AllowedPaths::default(), AskedBy::Kvm);
    let no: std::io::Result<()> = Err(std::io::Error::from_raw_os_error(nix::libc::EEXIST));
    let line = |at: u64| plan.lines().into_iter().find(|(range, _)| range.contains(&at)).unwrap().1;
    for (refusal, at, before, after) in [
        (&plan.areas[0].refusal, 0x6000, "mapped", "message "),
        (&plan.doorbells[0].refusal, 0x1800, "ioeventfd", "ioregionfd "),
        (&plan.doorbells[1].refusal, 0x5000, "ioeventfd", "message "),
        (&plan.ioregions[0].refusal, 0x1000, "ioregionfd", "message "),
    ] {
        refusal.set(&no);
        assert!(line(at).starts_with(after), "{}", line(at));
        assert!(line(at).contains(&format!("the system refuses {before} here: File exists")), "{}", line(at));
        refusal.set(&Ok(()));
        assert!(line(at).starts_with(before), "{}", line(at));
    }
}

/// A vCPU would wait for the page without a deadline.
#[test]
fn what_is_not_memory_or_ends_too_early_goes_by_message() {
    let mut description = description(&[(0, 0x1000), (0x6000, 0x2000)], vec![]);
    let expect = |description: &Description, text: &str| {
        let plan = Plan::choose(description, 2, AllowedPaths::default(), AskedBy::Vmm);
        let (range, line) = plan.lines().into_iter().find(|(range, _)| range.contains(&0x7000)).unwrap();
        assert!(range == (0x6000..0x8000) && line.starts_with("message") && line.contains(text), "{range:?} {line}");
    };
    description.regions[2].fd = Some(std::fs::File::open("/proc/self/exe").unwrap().into());
    expect(&description, "the file for mapped is not memory");
    let short = std::fs::File::from(memfd_create("short", MFdFlags::MFD_CLOEXEC).unwrap());
    short.set_len(0x7fff).unwrap();
    description.regions[2].fd = Some(short.into());
    expect(&description, "the file for mapped ends before");
    let plan = Plan::choose(&description, 2, AllowedPaths::default(), AskedBy::Vmm);
    assert_eq!(plan.areas.len(), 1, "what lies within the file is mapped");
}

/// As many as fit into a server's description. Each would hold up a vCPU for a while.
#[test]
fn only_so_many_are_given_to_kvm() {
    let areas: Vec<_> = (0..4096).map(|index| (0x10_0000 + 0x2000 * index, 0x1000)).collect();
    let (bell, socket) = (eventfd(), socket());
    let signalled = |index: u64| IoFd { fd: bell.clone(), ..signalled(0x4000 + 8 * index, 4) };
    let asked = |index: u64| IoFd { fd: socket.clone(), ..asked(0x2_0000 + 0x10 * index, 0x10, 0) };
    let mut description = description(&[], (0..800).map(signalled).chain((0..800).map(asked)).collect());
    description.regions[2] = region(1 << 30, &areas);
    let start = std::time::Instant::now();
    let plan = Plan::choose(&description, 2, AllowedPaths::default(), AskedBy::Kvm);
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    assert_gapless(&plan, 1 << 30);
    assert_eq!((plan.areas.len(), plan.doorbells.len(), plan.ioregions.len()), (64, 256, 256));
    let last = plan.part(0x10_0000 + 0x2000 * 4095).unwrap();
    assert_eq!((last.path, &last.passed_over[..]), (Path::Message, &[(PathName::Mapped, Reason::TooMany)][..]));
}
